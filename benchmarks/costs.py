"""Bytes and FLOPs that nobody can do without, by shapes alone: the floors of benchmarks and of docs/roofline.md."""

from __future__ import annotations

FLOAT = 4


def merge_bytes(numel: int, tasks: int, *, reads: int = 1, written: float = FLOAT) -> int:
    """Base and `tasks` models read `reads` times, `written` bytes a weight written."""
    return int(numel * (FLOAT * (tasks + 1) * reads + written))


def coefficient_gradient_bytes(numel: int, tasks: int) -> int:
    """The output's gradient, base and `tasks` models, each read once."""
    return FLOAT * numel * (tasks + 2)


def sparse_step_bytes(numel: int, density: float, *, rows: bool = False) -> int:
    """One AdamW step of the selected entries, as expected over random masks.

    Cache lines of 64 bytes that hold a selected entry: of the parameter read and written, of the gradient read; and
    18 bytes a selected entry of compact state (two moments read and written, an index of 16 bits).

    Args:
        numel: Weights.
        density: Fraction of them that is selected.
        rows: Whole rows are selected, not single entries.
    """
    touched = density if rows else 1 - (1 - density) ** 16
    return int(numel * (3 * FLOAT * touched + 18 * density))


def dense_step_bytes(numel: int) -> int:
    """One fused AdamW step of every weight: parameter and two moments read and written, the gradient read."""
    return 7 * FLOAT * numel


def weight_gradient_flops(rows: int, outputs: int, inputs: int) -> int:
    """The gradient of a dense layer's weight from `rows` rows; per-sample squares cost no product more."""
    return 2 * rows * outputs * inputs


def dual_linear_flops(rows: int, outputs: int, inputs: int) -> int:
    """W x, W dx and dW x."""
    return 3 * 2 * rows * outputs * inputs


def dual_attention_flops(batch: int, heads: int, tokens: int, head_dim: int) -> int:
    """q k, dq k + q dk, p v, p dv + dp v: six products of [S, S, D] a head."""
    return 6 * 2 * batch * heads * tokens * tokens * head_dim


def pair_bytes(numel: int, item: int = FLOAT) -> int:
    """x and dx read, y and dy written."""
    return 4 * item * numel


def lowrank_flops(m: int, n: int, rank: int) -> int:
    """One truncated decomposition through the Gram matrix, and its product: half of G, its reduction, both sides."""
    small, large = sorted((m, n))
    return int(large * small**2 + 4 / 3 * small**3 + 2 * small**2 * rank + 4 * m * n * rank)


def gesvd_flops(m: int, n: int, rank: int) -> int:
    """The thin decomposition after a QR, 6 M N^2 + 11 N^3 (Golub and Van Loan, 1996), and the truncated product."""
    small, large = sorted((m, n))
    return 6 * large * small**2 + 11 * small**3 + 2 * m * n * rank
