"""TIES by sd-mecha: ``run_sd_mecha.py OUTPUT DENSITY SCALE BASE MODEL ...``.

The steps of its ``add_difference_ties``, which itself fails on checkpoints of no known architecture.
"""

import sys
from pathlib import Path

import sd_mecha
import torch
from sd_mecha.extensions.builtin.merge_methods import linear, ties

output, density, scale, base, *models = sys.argv[1:]
first, *rest = (sd_mecha.model(path) for path in (base, *models))
merged = ties.ties_sum(*(linear.subtract(model, first) for model in rest), k=float(density))
Path(output).mkdir(parents=True)
sd_mecha.merge(
    linear.add_difference(first, merged, alpha=float(scale)),
    output=str(Path(output) / "out.safetensors"),
    output_dtype=torch.float32,
)
