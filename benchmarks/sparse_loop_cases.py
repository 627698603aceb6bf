"""A whole iteration of sparse fine-tuning against full fine-tuning: open_clip's ViT-B/32, one tenth of the weights.

``python -m benchmarks sparse_step`` times them in turn; ``python -m benchmarks.sparse_loop_cases`` prints the peak
memory of each in a process of its own, above what the process holds before the first iteration.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.clock import peak_resident
from benchmarks.contest import Contest

DENSITY = 0.1
CONTENDERS = ("full", "query_key", "random", "query_key_in_backward")


def sparse_step(blocks: int = 12, batch: int = 32) -> Contest:
    """One iteration at equal precision and by the same matrix products: forward, backward, clip, optimizer."""
    steps = {name: make_step(name, blocks, batch) for name in CONTENDERS}
    full = steps.pop("full")
    names = {
        "query_key": "a tenth, in query and key",
        "random": "a tenth, anywhere",
        "query_key_in_backward": "query and key, stepped in backward",
    }
    return Contest(ours={names[key]: step for key, step in steps.items()}, baselines={"full fine-tuning": full})


def make_step(name: str, blocks: int = 12, batch: int = 32) -> Callable[[], Any]:
    """One iteration as a function.

    Args:
        name: One of CONTENDERS. TaLoS puts nearly all of its tenth into the query and key rows of the attention's
            input projection; "query_key" spreads it evenly there. "query_key_in_backward" does not clip and steps
            each weight in the backward pass.
        blocks: Transformer blocks.
        batch: Images.
    """
    import torch
    import torch.nn.functional as F

    from taskarith_fast.models import compact_gradients, load_encoder
    from taskarith_fast.optim import SparseAdamW

    torch.manual_seed(0)
    model = load_encoder("open_clip:ViT-B-32", pretrained=False, depth=blocks)
    head = torch.nn.Linear(model.feature_dim, 10).requires_grad_(False)
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, 10, (batch,))

    def backward() -> None:
        F.cross_entropy(head(model(images)), labels).backward()

    if name == "full":
        dense = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def full() -> None:
            backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            dense.step()
            dense.zero_grad()

        return full

    masks = make_masks(model, everywhere=name == "random")
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(bool(masks.count(key)))
    optimizer = SparseAdamW(model.named_parameters(), masks=masks, lr=1e-5)
    at_once = name.endswith("in_backward")
    if at_once:
        optimizer.step_in_backward()

    def sparse() -> None:
        with compact_gradients(model, masks, on_gradient=optimizer.step_parameter if at_once else None):
            backward()
        if not at_once:
            optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return sparse


def make_masks(model: Any, *, everywhere: bool) -> Any:
    """A tenth of the blocks' dense weights, chosen at random among all of them or among query and key rows only."""
    import torch

    from taskarith_fast.masks import Masks

    generator = torch.Generator().manual_seed(0)
    weights = {n: p for n, p in model.named_parameters() if "resblocks" in n and p.dim() == 2}
    fused = {n: p for n, p in weights.items() if n.endswith("in_proj_weight")}
    total, places = sum(p.numel() for p in weights.values()), sum(2 * p.numel() // 3 for p in fused.values())
    masks = {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in model.named_parameters()}
    for name, p in (weights if everywhere else fused).items():
        rows = p.shape[0] if everywhere else 2 * p.shape[0] // 3
        density = DENSITY if everywhere else DENSITY * total / places
        masks[name][:rows] = torch.rand(rows, p.shape[1], generator=generator) < density
    return Masks.pack(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CONTENDERS, help="measure one, in this process")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    if options.only:
        step = make_step(options.only, options.blocks, options.batch)
        before = peak_resident()
        for _ in range(2):
            step()
        print(f"{options.only:24s} {(peak_resident() - before) / 1e6:8.0f} MB above {before / 1e6:.0f}")
        return
    size = ["--blocks", str(options.blocks), "--batch", str(options.batch)]
    for name in CONTENDERS:
        subprocess.check_call([sys.executable, "-m", "benchmarks.sparse_loop_cases", "--only", name, *size])


if __name__ == "__main__":
    main()
