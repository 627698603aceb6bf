import itertools

import numpy as np
import torch

from taskarith_fast.ops.bottom_k_mask import OP
from tests.ops.case_pack_bits import equal, packed, random_masks
from tests.ops.cases import OpCase, generator

ODD = [(7, 13), (1,), (64,), (1023,), (2, 3, 5), ()]
LARGE = [(70001,), (65536,), (300, 501), (5,)]


def _scores(shapes, seed=0):
    g = generator(seed)
    return [torch.randn(s, generator=g) for s in shapes]


def _sample(shapes, k, largest=False, excluded=None):
    def make(dtype):
        bits = [] if excluded is None else packed(random_masks(shapes, excluded))
        return _scores(shapes), bits, k, largest

    return make


def _few_values(shapes, k, largest):
    """Many ties, both zeros among them."""

    def make(dtype):
        scores = [torch.randint(-2, 3, s, generator=generator(1)).float() * 0.5 for s in shapes]
        for s in scores:
            s.view(-1)[::3] *= -1  # -0 too
        return scores, packed(random_masks(shapes, 0.3)), k, largest

    return make


def _infinite(dtype):
    scores = _scores([(1000,), (70000,)])
    for s in scores:
        s[::7], s[3::7] = torch.inf, -torch.inf
    return scores, [], 12000, False


def _lines(seed, k):
    """Sixteen neighbours are alike, so a sample of lines says less than it seems to: the bracket misses."""

    def make(dtype):
        lines = torch.rand(6000, 1, generator=generator(seed))
        return [(lines + 1e-4 * torch.rand(6000, 16, generator=generator(seed + 1)))], [], k, False

    return make


def _strided(dtype):
    return [s.t() for s in _scores([(90, 70)])], [], 1000, False


def _truth(scores, excluded, k, largest):
    flat = np.concatenate([s.double().numpy().ravel() for s in scores]) if scores else np.zeros(0)
    flat = -flat if largest else flat
    if excluded:
        parts = zip(excluded, scores, strict=True)
        out = [np.unpackbits(b.numpy(), bitorder="little", count=s.numel()) for b, s in parts]
        candidates = np.flatnonzero(np.concatenate(out) == 0)
    else:
        candidates = np.arange(flat.size)
    chosen = candidates[np.lexsort((candidates, flat[candidates]))[:k]]
    mask = np.zeros(flat.size, dtype=bool)
    mask[chosen] = True
    ends = np.cumsum([0, *[s.numel() for s in scores]])
    return packed([torch.from_numpy(mask[a:b]) for a, b in itertools.pairwise(ends)])


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(ODD, 500),
        "largest": _sample(ODD, 500, largest=True),
        "excluded": _sample(ODD, 300, excluded=0.5),
        "one": _sample(ODD, 1),
        "none": _sample(ODD, 0),
        "all": _sample(ODD, 1210),
        "several blocks": _sample(LARGE, 28000),
        "several blocks, largest, excluded": _sample(LARGE, 28000, True, 0.9),
        "several blocks, nearly all": _sample(LARGE, 285840),
        "few values": _few_values(ODD, 400, False),
        "few values, several blocks": _few_values(LARGE, 70000, False),
        "few values, largest": _few_values(LARGE, 99999, True),
        "one value": lambda dtype: ([torch.full((70000,), 0.5)], [], 12345, False),
        "infinities": _infinite,
        "lines of like values": _lines(1, 9600),
        "lines of like values, half": _lines(6, 48000),
        "empty tensors": _sample([(0,), (9,), (3, 0)], 4),
        "nothing at all": lambda dtype: ([], [], 0, False),
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=equal,
    dtypes=(torch.float32,),
)
