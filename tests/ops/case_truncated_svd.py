import torch

from benchmarks.spectra import matrix
from taskarith_fast.ops.truncated_svd import OP
from tests.ops.cases import OpCase, generator


def _noise(shape, rank, svd="certified"):
    def make(dtype):
        return torch.randn(shape, generator=generator()).to(dtype), rank, svd

    return make


def _spectrum(name, m, n, rank, svd="certified"):
    def make(dtype):
        return torch.stack([matrix(name, m, n, seed) for seed in range(2)]).to(dtype), rank, svd

    return make


def _strided(dtype):
    return torch.randn((80, 3, 70), generator=generator()).permute(1, 2, 0).to(dtype), 6, "certified"


def _deficient(dtype):
    g = generator()
    return (
        (torch.randn((2, 90, 4), generator=g) @ torch.randn((2, 4, 70), generator=g)).to(dtype),
        9,
        "certified",
    )


def _truth(matrices, rank, svd):
    return list(torch.linalg.svd(matrices.double(), full_matrices=False))


def _compare(args, out, eager, truth):
    """Vectors are free up to signs and rotations among equal values: hold what is not free to the budget."""
    matrices, rank, _ = args
    u, s, vh, excess = (o.double() for o in out)
    assert [o.shape for o in out] == [e.shape for e in eager]
    if not len(matrices):
        return
    size = matrices.double().norm(dim=(1, 2))[:, None]
    tail = truth[1][:, rank:].norm(dim=1, keepdim=True)
    torch.testing.assert_close(s, truth[1][:, :rank], rtol=0, atol=3e-6 * float(size.max()))
    assert bool((s[:, :-1] >= s[:, 1:]).all()) and bool((excess <= 1e-5).all())
    eye = torch.eye(rank, dtype=torch.float64)
    assert (u.mT @ u - eye).abs().max() < 3e-5 and (vh @ vh.mT - eye).abs().max() < 3e-5
    residual = (matrices.double() - (u * s[:, None]) @ vh).norm(dim=(1, 2))[:, None]
    assert bool((residual <= tail * (1 + 1e-5) + 3e-6 * size).all())
    assert bool((vh.gather(-1, vh.abs().argmax(-1, keepdim=True)) >= 0).all())


CASE = OpCase(
    op=OP,
    samples={
        "tall": _noise((3, 131, 67), 9),
        "wide": _noise((2, 70, 150), 20),
        "square": _spectrum("spiked", 96, 96, 30),
        "clustered": _spectrum("clustered", 130, 120, 50),
        "steep": _spectrum("steep", 90, 140, 25),
        "exact": _noise((2, 100, 75), 5, "exact"),
        "full rank": _noise((2, 40, 33), 33),
        "one entry": _noise((1, 1, 1), 1),
        "row": _noise((2, 1, 7), 1),
        "column": _noise((2, 7, 1), 1),
        "no matrix": _noise((0, 5, 3), 2),
        "zeros": lambda dtype: (torch.zeros(2, 70, 80, dtype=dtype), 5, "certified"),
        "rank deficient": _deficient,
        "not contiguous": _strided,
        "tiny": lambda dtype: (torch.full((1, 9, 5), 1e-20).to(dtype), 2, "certified"),
    },
    truth=_truth,
    compare=_compare,
)
