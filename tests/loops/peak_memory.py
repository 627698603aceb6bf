"""Run as a script: print the memory that a plan expects of a run, and the peak that the run then has.

Usage: peak_memory.py FAMILY WIDTH DEPTH BATCH CONFIG: the family is vit, bert or t5, the configuration in JSON, with
"in_place" too; recipe "masked" takes a tenth of every dense matrix.
"""

import json
import sys

import numpy as np
import torch
from torch import nn

from benchmarks.clock import peak_resident, resident
from benchmarks.language_memory import NoiseTokenizer
from taskarith_fast.data import ArraySplit, Task, TextSplit
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.memory_plan import plan_finetune
from taskarith_fast.loops.runtime import return_freed_memory
from taskarith_fast.loops.stages import _forget_peak
from taskarith_fast.masks import Masks
from taskarith_fast.models import VisionTransformer, VitConfig, language_model, random_head
from taskarith_fast.models.maskable import is_maskable

SIDE = 112


def made(family: str, width: int, depth: int) -> tuple[nn.Module, nn.Module | None]:
    """A model and its head."""
    if family == "vit":
        config = VitConfig(image_size=SIDE, width=width, depth=depth, heads=width // 32, position_grid=8)
        return VisionTransformer(config), random_head(width, 10, seed=0)
    import transformers

    if family == "bert":
        shape = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 4 * width}
        model = language_model(transformers.BertConfig(num_attention_heads=width // 32, vocab_size=4000, **shape))
    else:
        shape = {"d_model": width, "num_layers": depth, "d_ff": 4 * width}
        model = language_model(transformers.T5Config(num_heads=width // 64, vocab_size=4000, **shape))
    model.tokenizer = NoiseTokenizer(model.vocab_size, answers=family == "t5")
    return model, random_head(width, 10, seed=0) if family == "bert" else None


def task(family: str) -> Task:
    """128 samples of noise."""
    labels = np.arange(128) % (4 if family == "t5" else 10)
    images = np.random.default_rng(0).integers(0, 255, (128, SIDE, SIDE, 3), dtype=np.uint8)
    split = ArraySplit(images, labels) if family == "vit" else TextSplit(["noise"] * 128, labels)
    return Task("noise", tuple("0123456789"), dict.fromkeys(("train", "val", "test"), split))


def tenth(model: nn.Module) -> Masks:
    chosen = {n: p for n, p in model.named_parameters() if p.dim() == 2 and is_maskable(n)}
    return Masks.pack({name: torch.rand(p.shape) < 0.1 for name, p in chosen.items()})


def main() -> None:
    family = sys.argv[1]
    width, depth, batch = map(int, sys.argv[2:5])
    changes = json.loads(sys.argv[5])
    return_freed_memory()
    noise, in_place = task(family), changes.pop("in_place", False)
    config = FinetuneConfig(steps=2, batch_size=batch, device="cpu", **changes)
    # What torch needs once, such as its kernels and threads, is not the run's.
    finetune(*made(family, 64, 1), noise, FinetuneConfig(steps=1, batch_size=4, device="cpu"))
    before = resident()
    model, head = made(family, width, depth)
    masks = tenth(model) if "masked" in config.recipe else None
    planned = plan_finetune(model, head, config, masks, in_place=in_place).peak
    _forget_peak()
    finetune(model, head, noise, config, masks=masks, in_place=in_place)
    print(planned, peak_resident() - before)


if __name__ == "__main__":
    main()
