"""Run under torchrun: fine-tune in several processes, and leave what each of them has.

Usage: together.py FOLDER CASE ...
"""

import dataclasses
import os
import sys
from pathlib import Path

import torch

from taskarith_fast import checkpoint
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import FinetuneResult, finetune
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

# 401 images in batches of 16: the last batch of an epoch has one image, of which one process has no part.
CONFIG = FinetuneConfig(
    steps=30, batch_size=16, lr=1e-3, warmup=3, device="cpu", augment=True, label_smoothing=0.1, lora_rank=4,
    lora_alpha=8.0, threads=1,
)  # fmt: skip
CASES = {
    "full": dataclasses.replace(CONFIG, train_head=True, accumulation=2),
    "qkvo": dataclasses.replace(CONFIG, recipe="qkvo", checkpoint_activations=True),
    "lora": dataclasses.replace(CONFIG, recipe="lora"),
    "masked": dataclasses.replace(CONFIG, recipe="masked"),
    "linearized": dataclasses.replace(CONFIG, recipe="linearized", accumulation=2),
    "sharded": dataclasses.replace(CONFIG, train_head=True, accumulation=2, sharding="fsdp"),
    "sharded_qkvo": dataclasses.replace(CONFIG, recipe="qkvo", sharding="fsdp", checkpoint_activations=True),
}


def train(config: FinetuneConfig, place: Path | None = None) -> FinetuneResult:
    masks = None
    if config.recipe == "masked":
        generator = torch.Generator().manual_seed(0)
        masks = Masks.pack(
            {name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in vit().named_parameters()}
        )
    return finetune(vit(), random_head(16, 10, seed=0), digits(train=401), config, masks=masks, checkpoint=place)


def tensors(result: FinetuneResult) -> dict[str, torch.Tensor]:
    """All numbers of a result."""
    history = torch.tensor(result.history["loss"], dtype=torch.float64)
    return result.state | {f"head.{name}": tensor for name, tensor in result.head_state.items()} | {"loss": history}


def main() -> None:
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    for case in sys.argv[2:]:
        result = tensors(train(CASES[case]))
        checkpoint.save_state_dict(result, folder / f"{case}-{rank}.safetensors")
    place = folder / "run.resume"
    config = dataclasses.replace(CASES["qkvo"], checkpoint_every=20)
    train(config, place)
    resumed = tensors(train(config, place))
    checkpoint.save_state_dict(resumed, folder / f"resumed-{rank}.safetensors")


if __name__ == "__main__":
    main()
