"""Matrices with a given spectrum, for cases and tests of decompositions."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import shapes

SPECTRA = ("flat", "spiked", "steep", "clustered")


def matrix(spectrum: str, m: int, n: int, seed: int = 0) -> Tensor:
    """One float32 matrix, shape [m, n].

    "flat" is noise, N(0, 1e-3). "spiked" adds 20 stronger directions, as fine-tuning does. "steep" loses a
    decade of singular values every 20. "clustered" has three levels, 3, 2 and 1, at 40 and 90, each repeated
    up to 1e-4.

    Args:
        spectrum: A name of SPECTRA.
        m: Rows.
        n: Columns.
        seed: Of the generator.
    """
    generator = shapes.generator(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    size = min(m, n)
    if spectrum == "flat":
        return (1e-3 * randn(m, n)).float()
    if spectrum == "spiked":
        return (1e-3 * (randn(m, n) + 0.3 * randn(m, 20) @ randn(20, n))).float()
    i = torch.arange(size, dtype=torch.float64)
    if spectrum == "steep":
        values = 10 ** (-i / 20)
    else:
        values = 1.0 + (i < 40) + (i < 90) + 1e-4 * torch.rand(size, generator=generator, dtype=torch.float64)
    left, right = (torch.linalg.qr(randn(side, size)).Q for side in (m, n))
    return (1e-3 * (left * values) @ right.mT).float()
