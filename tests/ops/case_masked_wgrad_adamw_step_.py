import torch

from taskarith_fast.ops import pack_bits, row_starts
from taskarith_fast.ops.masked_wgrad_adamw_step_ import OP
from tests.ops.cases import InPlace, OpCase, generator
from tests.ops.sparse_step_samples import ADAMW, MASKS

EPS = torch.finfo(torch.float32).eps


def _sample(rows, o, k, kind="random", masters=False, maximize=False, step=5):
    def make(dtype):
        g = generator(1)
        mask = MASKS[kind]((o, k), g)
        x, grad_y = (torch.randn(rows, n, generator=g).to(dtype) for n in (k, o))
        param, count = torch.randn(o, k, generator=g).to(dtype), int(mask.sum())
        exp_avg, exp_avg_sq = torch.randn(count, generator=g), 0.1 + torch.rand(count, generator=g)
        bits = pack_bits([mask])[0]
        states = (param, exp_avg, exp_avg_sq, param[mask].float() if masters else None)
        options = (ADAMW["lr"], *ADAMW["betas"], ADAMW["eps"], ADAMW["weight_decay"], step, maximize)
        return *states, x, grad_y, bits, row_starts(bits, (o, k)), *options

    return make


def _strided(dtype):
    args = list(_sample(31, 37, 45)(dtype))
    args[4:6] = [t.t().contiguous().t() for t in args[4:6]]
    return tuple(args)


def _step(args):
    """The exact results by name, and what four roundings of each gradient's magnitude do to them."""
    param, m, v, master, x, grad_y, bits, _, lr, beta1, beta2, eps, weight_decay, step, maximize = args
    mask = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: param.numel()].bool()
    x, grad_y = x.double(), grad_y.double()
    g = (grad_y.t() @ x).flatten()[mask] * (-1 if maximize else 1)
    dg = 4 * EPS * (grad_y.abs().t() @ x.abs()).flatten()[mask]
    old = param.double().flatten()[mask] if master is None else master.double()
    m, v = beta1 * m.double() + (1 - beta1) * g, beta2 * v.double() + (1 - beta2) * g * g
    dm, dv = (1 - beta1) * dg, (1 - beta2) * 2 * g.abs() * dg
    rate, root = lr / (1 - beta1**step), (v / (1 - beta2**step)).sqrt() + eps
    weight = old * (1 - lr * weight_decay) - rate * m / root
    moved = rate * (dm / root + m.abs() / root * dv / (2 * v))
    whole, spread = param.double().flatten().clone(), torch.zeros(param.numel(), dtype=torch.float64)
    whole[mask], spread[mask] = weight, moved + 2 * EPS * (old.abs() + (rate * m / root).abs())
    names = ["param", "exp_avg", "exp_avg_sq"] + ["master"] * (master is not None)
    exact = dict(zip(names, (whole.view(param.shape), m, v, weight), strict=False))
    slack = dict(
        zip(names, (spread.view(param.shape), dm + 2 * EPS * g.abs(), dv + 2 * EPS * v, spread[mask]), strict=False)
    )
    return exact, slack, mask.view(param.shape)


def _compare(args, out, eager, truth):
    exact, slack, mask = _step(args)
    for name, o, e in zip(exact, out, eager, strict=True):
        t = exact[name]
        allowed = (t - e.double()).abs() + torch.finfo(o.dtype).eps * t.abs() + slack[name]
        assert o.shape == t.shape and ((t - o.double()).abs() <= allowed).all(), name
    assert torch.equal(out[0][~mask], args[0][~mask]), "a frozen entry changed"


CASE = OpCase(
    op=InPlace(OP, (0, 1, 2, 3)),
    samples={
        "odd sizes": _sample(31, 37, 45),
        "whole tiles": _sample(50, 64, 128, masters=True),
        "more rows than a run": _sample(600, 29, 67),
        "rare": _sample(50, 130, 150, "rare", masters=True),
        "everything": _sample(50, 37, 45, "all"),
        "nothing": _sample(50, 37, 45, "none"),
        "no input row": _sample(0, 7, 9),
        "maximized": _sample(7, 33, 65, maximize=True),
        "first step": _sample(7, 33, 65, step=1),
        "strided": _strided,
    },
    truth=lambda *args: list(_step(args)[0].values()),
    compare=_compare,
)
