"""A whole iteration of sparse fine-tuning against full fine-tuning: open_clip's ViT-B/32, one tenth of the weights.

``python -m benchmarks sparse_step`` times them in turn; ``python -m benchmarks loops`` prints each one's peak memory in
a process of its own, above what the process holds before the model is made: weights, state, gradients, activations.
``python -m benchmarks.sparse_loop_cases`` does the same for other sizes; with ``--device cuda``, the peak of what torch
allocates on the GPU.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import shapes
from benchmarks.clock import peak_resident, reset_peak
from benchmarks.contest import Contest

DENSITY = 0.1
MODEL = "ViT-B-32"
CONTENDERS = ("full", "query_key", "random", "query_key_in_backward")


def sparse_step(blocks: int = 0, batch: int = 32, model_name: str = MODEL) -> Contest:
    """One iteration at equal precision and by the same matrix products: forward, backward, clip, optimizer."""
    steps = {name: make_step(name, blocks, batch, model_name) for name in CONTENDERS}
    full = steps.pop("full")
    names = {
        "query_key": "a tenth, in query and key",
        "random": "a tenth, anywhere",
        "query_key_in_backward": "query and key, stepped in backward",
    }
    return Contest(ours={names[key]: step for key, step in steps.items()}, baselines={"full fine-tuning": full})


def make_step(name: str, blocks: int = 0, batch: int = 32, model_name: str = MODEL) -> Callable[[], Any]:
    """One iteration as a function.

    Args:
        name: One of CONTENDERS. TaLoS puts nearly all of its tenth into the query and key rows of the attention's
            input projection; "query_key" spreads it evenly there. "query_key_in_backward" does not clip and steps
            each weight in the backward pass.
        blocks: Transformer blocks; 0 takes all of the model.
        batch: Images.
        model_name: open_clip's name of the model.
    """
    import torch
    import torch.nn.functional as F

    from taskarith_fast.models import compact_gradients, load_encoder
    from taskarith_fast.optim import SparseAdamW

    torch.manual_seed(0)
    model = load_encoder(f"open_clip:{model_name}", pretrained=False, depth=blocks or None)
    model = model.to(torch.get_default_device())
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

    generator = shapes.generator(0)
    weights = {n: p for n, p in model.named_parameters() if "resblocks" in n and p.dim() == 2}
    fused = {n: p for n, p in weights.items() if n.endswith("in_proj_weight")}
    total, places = sum(p.numel() for p in weights.values()), sum(2 * p.numel() // 3 for p in fused.values())
    masks = {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in model.named_parameters()}
    for name, p in (weights if everywhere else fused).items():
        rows = p.shape[0] if everywhere else 2 * p.shape[0] // 3
        density = DENSITY if everywhere else DENSITY * total / places
        masks[name][:rows] = torch.rand(rows, p.shape[1], generator=generator) < density
    return Masks.pack(masks)


def on_gpu(name: str, runs: int = 8, **size: Any) -> str:
    """Peak bytes that torch allocates for some iterations, and the time of one."""
    import statistics

    import torch

    from benchmarks.clock import CudaClock

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        step = make_step(name, **size)
    for _ in range(3):
        step()
    peak, clock = torch.cuda.max_memory_allocated(), CudaClock()
    times = [clock.run(step)[0] for _ in range(runs)]
    median, low, high = (1e3 * f(times) for f in (statistics.median, min, max))
    return f"{peak / 1e6:8.0f} MB   {median:7.2f} ms  [{low:.2f}, {high:.2f}] x{runs}"


def peak_memory(blocks: int = 0, batch: int = 32, model_name: str = MODEL) -> dict[str, Any]:
    """Peak bytes of two iterations of every contender, each in a process of its own; prints them."""
    words = ["--blocks", str(blocks), "--batch", str(batch), "--model", model_name]
    peaks: dict[str, int] = {}
    print("\nloops")
    for name in CONTENDERS:
        command = [sys.executable, "-m", "benchmarks.sparse_loop_cases", "--only", name, *words]
        peaks[name] = int(subprocess.check_output(command, text=True))
        print(f"  {name:24s} {peaks[name] / 1e6:8.0f} MB  {peaks[name] / peaks['full']:.2f} of full", flush=True)
    return {"case": "loops", **peaks}


def _peak_of(name: str, **size: Any) -> int:
    import open_clip  # noqa: F401  what it takes is not the model's

    before = reset_peak()
    step = make_step(name, **size)
    gc.collect()
    reset_peak()  # what was held to make the model is gone
    for _ in range(2):
        step()
    return peak_resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CONTENDERS, help="measure one, in this process")
    parser.add_argument("--blocks", type=int, default=0, help="transformer blocks; 0 takes all")
    parser.add_argument("--model", default=MODEL, help="open_clip's name")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    size = {"blocks": options.blocks, "batch": options.batch, "model_name": options.model}
    if options.device == "cuda":
        for name in [options.only] if options.only else CONTENDERS:
            print(f"{name:24s} {on_gpu(name, **size)}", flush=True)
        return
    if options.only:
        print(_peak_of(options.only, **size))
    else:
        peak_memory(**size)


if __name__ == "__main__":
    main()
