"""``python -m benchmarks.roofline`` writes docs/roofline.md: what each GPU kernel must move, and the least time of it.

Bytes and FLOPs come from benchmarks/costs.py, as in the benchmarks; what the alternative moves is counted while it
runs at a small size (benchmarks/traffic.py); measured times are read from the file that
``python -m benchmarks --device cuda --json docs/measured/benchmarks_cuda.json`` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import costs, gpu_cases, gradient_cases, op_cases, shapes, sparse_cases, tangent_cases, traffic
from benchmarks.contest import Contest

ROOT = Path(__file__).resolve().parent.parent
PAGE, MEASURED = ROOT / "docs/roofline.md", ROOT / "docs/measured/benchmarks_cuda.json"
_SMALL = [(192, 64), (64, 64), (256, 64), (64, 256)]


@dataclass(frozen=True)
class Gpu:
    """Data-sheet rates: bytes a second, FLOP a second in float32, and in bfloat16 and float64 on the matrix units."""

    name: str
    bandwidth: float
    float32: float
    bfloat16: float
    float64: float

    def milliseconds(self, kernel: Kernel) -> float:
        rate = self.bfloat16 if kernel.case.endswith("bfloat16") else self.float32
        rate = self.float64 if kernel.case.startswith("lowrank_sum") else rate
        return 1e3 * max(kernel.bytes_moved / self.bandwidth, kernel.flops / rate)


@dataclass(frozen=True)
class Kernel:
    """One row: an operator at ViT-L/14's size, and its usual replacement at a small one.

    case: The benchmark case's name.
    bytes_moved: Bytes that nobody can do without; 0 where the FLOPs decide.
    flops: FLOPs that nobody can do without; 0 where the bytes decide.
    small: The contest at a small size on the processor; None if `alternative_flops` are given.
    alternative: Which of its baselines.
    alternative_flops: At the full size, by a formula: torch counts none of decompositions.
    """

    case: str
    bytes_moved: int
    flops: int
    small: Callable[[], Contest] | None
    alternative: str
    alternative_flops: int = 0


GPUS = (
    Gpu("A100 80 GB", 2.04e12, 19.5e12, 312e12, 19.5e12),
    Gpu("H100 SXM", 3.35e12, 67e12, 990e12, 67e12),
    Gpu("H200", 4.8e12, 67e12, 990e12, 67e12),
    Gpu("B200", 8.0e12, 75e12, 2250e12, 37e12),
)


def kernels() -> list[Kernel]:
    """The table, at the sizes of benchmarks/gpu_cases.py."""
    numel = sum(torch.Size(s).numel() for s in shapes.vit_l14_shapes())
    merges: dict[str, tuple[int, Callable[[], Contest]]] = {
        "weighted_sum": (costs.merge_bytes(numel, 8), lambda: op_cases.weighted_sum(_SMALL, 8)),
        "ties_merge": (costs.merge_bytes(numel, 8, reads=2), lambda: op_cases.ties(_SMALL, 8)),
        "dare": (costs.merge_bytes(numel, 8), lambda: op_cases.dare(_SMALL)),
        "breadcrumbs": (costs.merge_bytes(numel, 8), lambda: op_cases.breadcrumbs(_SMALL)),
        "tall_mask": (costs.merge_bytes(numel, 8, written=1), lambda: op_cases.tall_mask(_SMALL)),
        "consensus": (costs.merge_bytes(numel, 8), lambda: op_cases.consensus(_SMALL)),
    }
    recipe = "published recipe (torch)"
    rows = [Kernel(f"{op}/vit_l14x8", least, 0, small, recipe) for op, (least, small) in merges.items()]
    rows.append(
        Kernel(
            "weighted_sum_backward/vit_l14x8",
            costs.coefficient_gradient_bytes(numel, 8),
            0,
            lambda: op_cases.weighted_sum_backward(_SMALL),
            "autograd through stacked task vectors",
        )
    )
    matrices = sum(m * n for m, n in gpu_cases.MATRICES)
    for name, density, whole in (("random_0.1", 0.1, False), ("random_0.01", 0.01, False), ("rows_0.1", 0.1, True)):
        rows.append(
            Kernel(
                f"sparse_adamw_step_/vit_l14_{name}",
                costs.sparse_step_bytes(matrices, density, rows=whole),
                0,
                lambda density=density, whole=whole: sparse_cases.adamw_step(density, whole, _SMALL),  # type: ignore[misc]
                "torch fused AdamW, dense",
            )
        )
    return [*rows, _selection(), _decompositions(), _linearized()] + [
        row for kind in ("float32", "bfloat16") for row in _products(kind)
    ]


def _selection() -> Kernel:
    """Two readings of the scores and a mask of bits."""
    numel = sum(m * n for m, n in gpu_cases.MATRICES)
    moved = int(numel * (2 * costs.FLOAT + 1 / 8))
    return Kernel("bottom_k_mask/vit_l14", moved, 0, lambda: gpu_cases.bottom_k(_SMALL), "torch.topk")


def _decompositions() -> Kernel:
    """CART's sum of one block, in float64."""
    sizes = [(m, n, int(0.08 * min(m, n))) for m, n in gpu_cases.MATRICES[:4]]
    least, full = (8 * sum(count(*s) for s in sizes) for count in (costs.lowrank_flops, costs.gesvd_flops))
    return Kernel("lowrank_sum/vit_l14_block_x8", 0, least, None, "gesvd of each matrix", full)


def _linearized() -> Kernel:
    """A training step of a linearized ViT-B/32 on 128 images: three products forward, two backward."""
    least = 5 * 2 * 128 * 50 * 12 * 768 * 768 * 12
    return Kernel("linearized_step/vit_b32", 0, least, lambda: tangent_cases.linearized_step(1, 2), "torch.func.jvp")


def _products(kind: str) -> list[Kernel]:
    """Operators of layers, by storage type."""
    dtype = getattr(torch, kind)
    samples, tokens = gpu_cases.ROWS
    rows, item = samples * tokens, dtype.itemsize
    layer = gradient_cases.Layer(2, 9, outputs=256, inputs=64, dtype=dtype)
    eager = "reference (torch)"
    return [
        Kernel(
            f"fisher_diag_/vit_l14_mlp_{kind}", 0, costs.weight_gradient_flops(rows, 4096, 1024),
            lambda: gradient_cases.fisher(layer), "mm + addcmul_ by sample",
        ),
        Kernel(
            f"masked_wgrad_/vit_l14_mlp_rows_0.1_{kind}", 0, costs.weight_gradient_flops(rows, 4096, 1024) // 10,
            lambda: gradient_cases.masked(0.1, True, layer), "F.linear, then gather",
        ),
        Kernel(
            f"dual_linear/vit_l14_mlp_{kind}", 0, costs.dual_linear_flops(rows, 4096, 1024),
            lambda: gpu_cases.linear(dtype, (2, 9), 64), "three products (torch)",
        ),
        Kernel(
            f"dual_attention/vit_l14_{kind}", 0, costs.dual_attention_flops(samples, 16, tokens, 64),
            lambda: tangent_cases.dual_attention(tokens, 1, 1, dtype), "dense torch",
        ),
        Kernel(
            f"dual_layer_norm/vit_l14_{kind}", 3 * item * rows * 1024, 0,
            lambda: gpu_cases.layer_norm(dtype, (2, 9)), eager,
        ),
        Kernel(
            f"dual_gelu/vit_l14_mlp_{kind}", 3 * item * rows * 4096, 0, lambda: gpu_cases.gelu(dtype, (2, 9)), eager,
        ),
        Kernel(
            f"dual_glu/hidden_4096_{kind}", 5 * item * rows * 4096, 0, lambda: gpu_cases.glu(dtype, (2, 9)), eager,
        ),
    ]  # fmt: skip


def page() -> str:
    """The page in Markdown."""
    found = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    measured = {r["case"]: r for r in found.get("results", []) if "stats" in r}
    lines = [_HEAD]
    table = kernels()
    lines += [
        "| case | bytes | FLOPs | " + " | ".join(f"{g.name}, ms" for g in GPUS) + " | alternative | its traffic |"
    ]
    lines += ["|---|---:|---:|" + "---:|" * len(GPUS) + "---|---:|"]
    for kernel in table:
        cells = [f"`{kernel.case}`", _amount(kernel.bytes_moved, "B"), _amount(kernel.flops, "FLOP")]
        cells += [f"{gpu.milliseconds(kernel):.3g}" for gpu in GPUS]
        lines.append("| " + " | ".join([*cells, kernel.alternative, _ratio(kernel)]) + " |")
    lines += ["", "## Measured", "", _machine(found.get("machine"))]
    if measured:
        lines += [
            "",
            "| case | ours, ms | GB/s or TFLOP/s | of the copy's or product's rate | against |",
            "|---|---:|---:|---:|---|",
        ]
        lines += [_measured_row(result, found["machine"]) for result in measured.values()]
    return "\n".join(lines) + "\n"


def _ratio(kernel: Kernel) -> str:
    """Bytes of the alternative's torch operations over the least possible, counted at the small size."""
    if kernel.small is None:
        return f"{kernel.alternative_flops / kernel.flops:.2g}x FLOPs"
    contest = kernel.small()
    if not contest.bytes_moved:
        return f"{traffic.flops_of(contest.baselines[kernel.alternative]) / contest.flops:.2g}x FLOPs"
    return f"{traffic.bytes_of(contest.baselines[kernel.alternative]) / contest.bytes_moved:.2g}x"


def _machine(machine: dict[str, Any] | None) -> str:
    if machine is None:
        return "No GPU has run these kernels yet: every GPU time here is a floor by arithmetic, not a measurement."
    return (
        f"{machine['gpu']}, torch {machine['torch']}, CUDA {machine['cuda']}, commit {machine['commit']}: a copy moves "
        f"{machine['copy_gb_per_s']} GB/s (read and written), torch's matrix product computes "
        f"{machine['float32_tflop_per_s']} TFLOP/s in float32 and {machine['bfloat16_tflop_per_s']} in bfloat16. "
        "Medians between CUDA events after the L2 cache was overwritten, the host's part included: with 96 to 2,664 "
        "tensors a call, preparing a launch takes 1.5 to 5 ms. The kernels alone take less (measured/profile_h200.txt: "
        "weighted_sum 3.3 ms, 0.87 of the copy's rate). Above 1x, ours is faster."
    )


def _measured_row(result: dict[str, Any], machine: dict[str, Any]) -> str:
    ours = next(iter(result["stats"]))
    seconds = result["stats"][ours]["median"]
    speed = share = ""
    if result["bytes"]:
        rate = result["bytes"] / seconds / 1e9
        speed, share = f"{rate:.0f} GB/s", f"{rate / machine['copy_gb_per_s']:.2f}"
    elif result["flops"]:
        kind = "bfloat16" if result["case"].endswith("bfloat16") else "float32"
        rate = result["flops"] / seconds / 1e12
        speed, share = f"{rate:.1f} TFLOP/s", f"{rate / machine[f'{kind}_tflop_per_s']:.2f}"
    ratios = [
        f"{pair.split(' / ')[0]} {r:.0f}x" if r >= 10 else f"{pair.split(' / ')[0]} {r:.2f}x"
        for pair, r in result["ratios"].items()
        if pair.endswith(f" / {ours}")
    ]
    return f"| `{result['case']}` | {seconds * 1e3:.3g} | {speed} | {share} | {', '.join(ratios)} |"


def _amount(number: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return ""


_HEAD = """# Roofline

Generated by `python -m benchmarks.roofline`.

For each GPU kernel the bytes that have to move (every input read once, every result written once) or the FLOPs that
have to be done, whichever decides; the time that a GPU needs for them at the rates of its data sheet (bandwidth 2.04,
3.35, 4.8, 8.0 TB/s; float32 19.5, 67, 67, 75 TFLOP/s; on the matrix units bfloat16 312, 990, 990, 2250 TFLOP/s and
float64, which `lowrank_sum` uses, 19.5, 67, 67, 37); and what the usual alternative does instead, counted operation by
operation while it runs (gesvd by its formula, 6 M N^2 + 11 N^3).
"""


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text() == text
        print(f"{PAGE.name} is {'up to date' if same else 'stale: run python -m benchmarks.roofline'}")
        return int(not same)
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
