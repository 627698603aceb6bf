"""Samples of the sparse optimizers' steps in every form of selection and gradient, and how results are judged."""

import math

import torch

from taskarith_fast.ops import Selection, sparse_adamw_step_
from tests.ops.cases import generator

SHAPES = [(33, 31), (7,), (1, 4097), (70_001,), ()]
MASKS = {
    "random": lambda s, g: torch.rand(s, generator=g) < 0.3,
    "rare": lambda s, g: torch.rand(s, generator=g) < 0.01,
    "runs": lambda s, g: torch.arange(math.prod(s)).reshape(s) % 97 < 40,
    "nearly all": lambda s, g: torch.rand(s, generator=g) < 0.99,
    "all": lambda s, g: torch.ones(s, dtype=torch.bool),
    "none": lambda s, g: torch.zeros(s, dtype=torch.bool),
}
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


class Sample:
    """Parameters, gradients and states in the middle of a run; the same ones at each call."""

    def __init__(self, kind, dtype=torch.float32, shapes=SHAPES, compact=False, masters=False):
        g = generator(1)
        self.masks = [MASKS[kind](s, g) for s in shapes]
        self.params = [torch.randn(s, generator=g).to(dtype) for s in shapes]
        dense = [torch.randn(s, generator=g).to(dtype) for s in shapes]
        self.grads = [x[m] for x, m in zip(dense, self.masks, strict=True)] if compact else dense
        self.selections = [Selection.of(m) for m in self.masks]
        counts = [s.count for s in self.selections]
        self.exp_avgs = [0.1 * torch.randn(n, generator=g) for n in counts]
        self.exp_avg_sqs = [torch.rand(n, generator=g) for n in counts]
        self.masters = [p[m].float() for p, m in zip(self.params, self.masks, strict=True)] if masters else []

    @property
    def selection_lists(self):
        """items and offsets, as the operators take them."""
        return [s.items for s in self.selections], [s.offsets for s in self.selections]

    def selected(self, tensors):
        return [t[m] for t, m in zip(tensors, self.masks, strict=True)]

    def adamw(self, backend, step=5, **options):
        sparse_adamw_step_(
            self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.selections,
            step=step, masters=self.masters, backend=backend, **{**ADAMW, **options},
        )  # fmt: skip
        return self


def chosen(tensor, numel, item, offset):
    """The selected entries of a dense or compact tensor, float64 [count]."""
    index, flat = Selection(item, offset, numel, 0).index(), tensor.reshape(-1)
    return (flat if flat.numel() == len(index) else flat[index]).double()


def scattered(tensor, item, offset, values):
    """`tensor` in float64 with `values` for its selected entries."""
    out = tensor.double().reshape(-1).clone()
    out[Selection(item, offset, out.numel(), 0).index()] = values
    return out.reshape(tensor.shape)


def factor_of(clip, grad_scale, maximize):
    """What the gradient is multiplied with."""
    clip, grad_scale = (1.0 if x is None else float(x) for x in (clip, grad_scale))
    return (-clip if maximize else clip) / grad_scale


def compare(args, out, eager, truth):
    """The error budget; what is not selected keeps its bits.

    A new weight is the sum of two float32 terms: its rounding is that of the larger one, not of the sum.
    """
    params = args[0]
    for i, p in enumerate(params):
        old, exact, found = p.double(), truth[i], out[i].double()
        terms = 2 * torch.finfo(torch.float32).eps * (old.abs() + (exact - old).abs())
        allowed = (exact - eager[i].double()).abs() + torch.finfo(p.dtype).eps * exact.abs() + terms
        assert found.shape == p.shape and ((exact - found).abs() <= allowed).all(), f"parameter {i}"
        assert torch.equal(found[exact == old], old[exact == old]), f"parameter {i} changed where it is frozen"
    states = slice(len(params), None)
    for i, (o, e, t) in enumerate(zip(out[states], eager[states], truth[states], strict=True)):
        assert o.dtype == torch.float32, f"state {i}"
        torch.testing.assert_close(o.double(), t, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(o, e, rtol=5e-7, atol=5e-7)
