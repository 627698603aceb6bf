"""Run as a script: print the memory that a plan expects of a run, and the peak that the run then has.

Usage: peak_memory.py WIDTH DEPTH BATCH CONFIG, the last in JSON; recipe "masked" takes a tenth of every matrix.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from taskarith_fast.data import ArraySplit, Task
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.memory_plan import plan_finetune
from taskarith_fast.loops.runtime import return_freed_memory
from taskarith_fast.loops.stages import _forget_peak, _peak_rss_bytes
from taskarith_fast.masks import Masks
from taskarith_fast.models import VisionTransformer, VitConfig, random_head

SIDE = 112


def encoder(width: int, depth: int) -> VisionTransformer:
    return VisionTransformer(VitConfig(image_size=SIDE, width=width, depth=depth, heads=width // 32, position_grid=8))


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def tenth(model: VisionTransformer) -> Masks:
    return Masks.pack({name: torch.rand(p.shape) < 0.1 for name, p in model.named_parameters() if p.dim() == 2})


def main() -> None:
    width, depth, batch = map(int, sys.argv[1:4])
    return_freed_memory()
    images = np.random.default_rng(0).integers(0, 255, (128, SIDE, SIDE, 3), dtype=np.uint8)
    split = ArraySplit(images, np.arange(128) % 10)
    task = Task("noise", tuple("0123456789"), dict.fromkeys(("train", "val", "test"), split))
    config = FinetuneConfig(steps=2, batch_size=batch, device="cpu", **json.loads(sys.argv[4]))
    # What torch needs once, such as its kernels and threads, is not the run's.
    finetune(encoder(32, 1), random_head(32, 10, seed=0), task, FinetuneConfig(steps=1, batch_size=4, device="cpu"))
    before = resident()
    model, head = encoder(width, depth), random_head(width, 10, seed=0)
    masks = tenth(model) if "masked" in config.recipe else None
    planned = plan_finetune(model, head, config, masks).peak
    _forget_peak()
    finetune(model, head, task, config, masks=masks)
    print(planned, int(_peak_rss_bytes(True)) - before)


if __name__ == "__main__":
    main()
