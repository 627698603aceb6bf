import numpy as np
import torch

from taskarith_fast.ops.tall_mask import OP
from tests.ops.cases import OpCase, task_lists

SHAPES = [(7, 13), (1,), (513,), (2, 3, 5)]


def sample(shapes, tasks, spread=1e-2, lambdas=(0.4, 0.2, 0.6)):
    def make(dtype):
        base, finetuned = task_lists(shapes, tasks, dtype, spread=spread)
        return (
            base,
            finetuned,
            torch.tensor([lambdas[t % len(lambdas)] for t in range(tasks)], dtype=torch.float64),
        )

    return make


def strided(dtype):
    base, finetuned, lambdas = sample([(6, 10)], 2)(dtype)
    return [b.t() for b in base], [f.t() for f in finetuned], lambdas


def on_the_boundary(dtype):
    """|tau_t| equal to lambda |tau_MT - tau_t|, exactly: not needed. And opposite deltas, and zeros."""
    base = [torch.zeros(70, dtype=dtype)]
    first, second = torch.ones(70, dtype=dtype), torch.full((70,), 2.0, dtype=dtype)
    first[10:20], second[10:20] = 1.0, -1.0
    first[20:30] = second[20:30] = 0.0
    return base, [first, second], torch.tensor([0.5, 2.0], dtype=torch.float64)


def masks_by_the_book(base, finetuned, lambdas):
    """For each tensor the masks, bool [T, numel], in numpy's float64."""
    out = []
    for i, b in enumerate(base):
        deltas = np.stack(
            [(f.double() - b.double()).numpy().ravel() for f in finetuned[i :: len(base)]] or [np.zeros(b.numel())]
        )[: len(lambdas)]
        rest = deltas.sum(0, keepdims=True) - deltas
        out.append((deltas, np.abs(deltas) > lambdas.numpy()[:, None] * np.abs(rest)))
    return out


def _truth(base, finetuned, lambdas):
    masks = masks_by_the_book(base, finetuned, lambdas)
    return [torch.from_numpy(np.packbits(m, axis=1, bitorder="little")) for _, m in masks]


def crossings(base, finetuned, lambdas):
    """Entries so close to the boundary that the order of float64 additions decides."""
    out = []
    for deltas, _ in masks_by_the_book(base, finetuned, lambdas):
        rest = lambdas.numpy()[:, None] * np.abs(deltas.sum(0, keepdims=True) - deltas)
        size = np.abs(deltas).sum(0, keepdims=True) * (1 + lambdas.numpy()[:, None])
        out.append((np.abs(np.abs(deltas) - rest) <= 2**-50 * size) & (size > 0))
    return out


def _compare(args, out, eager, truth):
    for o, e, t, near in zip(out, eager, truth, crossings(*args), strict=True):
        assert o.shape == t.shape and torch.equal(o, e)
        bits, exact = (np.unpackbits(x.numpy(), axis=1, bitorder="little") for x in (o, t))
        differs = bits != exact
        assert not differs[:, near.shape[1] :].any(), "padding bits are not zero"
        assert not (differs[:, : near.shape[1]] & ~near).any()


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": sample(SHAPES, 3),
        "nine tasks": sample([(129, 33)], 9),
        "one task": sample(SHAPES, 1),
        "no task": sample(SHAPES, 0),
        "empty tensors": sample([(0,), (3, 0), (5,)], 2),
        "no dimension": sample([()], 2),
        "no delta": sample([(70,)], 2, spread=0.0),
        "more than a block": sample([(17000,), (3,)], 2),
        "on the boundary": on_the_boundary,
        "not contiguous": strided,
    },
    truth=_truth,
    compare=_compare,
)
