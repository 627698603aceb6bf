"""TIES by mergekit: ``run_mergekit.py OUTPUT DENSITY SCALE BASE MODEL ...``, through its script for raw checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

output, density, scale, base, *models = sys.argv[1:]
recipe = {
    "merge_method": "ties",
    "base_model": base,
    "dtype": "float32",
    "parameters": {"density": float(density), "weight": 1.0, "normalize": True, "lambda": float(scale)},
    "models": [{"model": model} for model in (base, *models)],
}
path = Path(output).with_suffix(".yml")
path.write_text(json.dumps(recipe))  # JSON is YAML
script = Path(sys.executable).with_name("mergekit-pytorch")
sys.exit(subprocess.call([str(script), str(path), output]))
