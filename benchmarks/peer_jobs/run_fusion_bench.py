"""TIES by fusion_bench: ``run_fusion_bench.py OUTPUT DENSITY SCALE BASE MODEL ...``."""

import sys
from pathlib import Path

import torch
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm
from safetensors.torch import load_file, save_file


def module_of(path: str) -> torch.nn.Module:
    """The package merges modules: one that holds the file's tensors by their names."""
    module = torch.nn.Module()
    for name, tensor in load_file(path).items():
        module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    return module


output, density, scale, base, *models = sys.argv[1:]
pool = {"_pretrained_": module_of(base), **{f"m{t}": module_of(path) for t, path in enumerate(models)}}
algorithm = TiesMergingAlgorithm(
    scaling_factor=float(scale), threshold=100 * float(density), remove_keys=[], merge_func="mean"
)
merged = algorithm.run(pool)
Path(output).mkdir(parents=True)
save_file({name: tensor.contiguous() for name, tensor in merged.state_dict().items()}, Path(output) / "out.safetensors")
