"""Run as a script: fine-tune in processes that kill themselves, and compare the bytes of the result.

Usage: resumable.py FOLDER RECIPE KILLS. A kill is "STEP" (after that step) or "wSTEP" (while the checkpoint of that
step is written).
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch

from taskarith_fast import checkpoint
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from taskarith_fast.progress import Progress, Stage
from tests.loops.tiny import digits, vit

CONFIG = FinetuneConfig(
    steps=20, batch_size=16, lr=1e-3, warmup=5, device="cpu", accumulation=2, augment=True, checkpoint_every=3,
    lora_rank=4, lora_alpha=8.0,
)  # fmt: skip


class KillAt(Progress):
    """Kills the process when this many steps are done."""

    def __init__(self, step: int) -> None:
        super().__init__(enabled=False)
        self._left = step

    def stage(self, label, total=None):
        outer = self

        class Counting(Stage):
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

            def advance(self, steps=1, note=None):
                outer._left -= steps
                if outer._left <= 0 and steps == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

        return Counting()


def kill_while_writing(step: int) -> None:
    """Let the checkpoint of this step be cut off in the middle by a kill."""
    save = torch.save

    def cut(document, path):
        save(document, path)
        if document["step"] >= step:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = cut


def run(folder: Path, recipe: str, kill: str) -> None:
    config = dataclasses.replace(CONFIG, recipe=recipe, train_head=recipe == "full")
    if kill.startswith("w"):
        kill_while_writing(int(kill[1:]))
    progress = KillAt(int(kill)) if kill.isdigit() else None
    place = folder / "run.resume" if kill != "never" else None
    chosen = {name: p.detach() > 0 for name, p in vit().named_parameters()}
    masks = Masks.pack(chosen) if "masked" in recipe else None
    result = finetune(vit(), random_head(16, 10, seed=0), digits(), config, progress, masks=masks, checkpoint=place)
    state = result.state | {f"head.{name}": tensor for name, tensor in result.head_state.items()}
    state |= {f"tau.{name}": tensor for name, tensor in (result.tau or {}).items()}
    state["loss"] = torch.tensor(result.history["loss"], dtype=torch.float64)
    name = "whole" if kill == "never" else "resumed"
    checkpoint.save_state_dict(state, folder / f"{name}.safetensors", overwrite=True)


def main() -> None:
    folder, recipe, kills = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for kill in ("never", *kills, "end"):
        child = os.fork()
        if child == 0:
            run(folder, recipe, kill)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        expected = kill not in ("never", "end")
        assert os.WIFSIGNALED(status) == expected, (kill, status)
        print(kill, sorted(path.name for path in folder.iterdir()), flush=True)


if __name__ == "__main__":
    main()
