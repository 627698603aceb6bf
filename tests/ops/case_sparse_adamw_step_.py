import torch

from taskarith_fast.ops.sparse_adamw_step_ import OP
from tests.ops.cases import InPlace, OpCase
from tests.ops.sparse_step_samples import ADAMW, MASKS, Sample, chosen, compare, factor_of, scattered


def _sample(kind, scalars=(None, None, None), maximize=False, steps=(), **options):
    def make(dtype):
        s = Sample(kind, dtype, **options)
        lists = (s.params, s.grads, s.exp_avgs, s.exp_avg_sqs, s.masters, *s.selection_lists, [])
        return (
            *lists,
            *scalars,
            ADAMW["lr"],
            *ADAMW["betas"],
            ADAMW["eps"],
            ADAMW["weight_decay"],
            list(steps),
            5,
            maximize,
        )

    return make


def _truth(params, grads, exp_avgs, exp_avg_sqs, masters, items, offsets, _, clip, grad_scale, found_inf, *scalars):
    lr, beta1, beta2, eps, weight_decay, steps, step, maximize = scalars
    if found_inf is not None and found_inf.item():
        return [x.double() for x in (*params, *exp_avgs, *exp_avg_sqs, *masters)]
    new, first, second, copies = [], [], [], []
    for i, (p, item, offset) in enumerate(zip(params, items, offsets, strict=True)):
        step = int(steps[i]) + 1 if steps else step
        g = chosen(grads[i], p.numel(), item, offset) * factor_of(clip, grad_scale, maximize)
        old = masters[i].double() if masters else chosen(p, p.numel(), item, offset)
        m = beta1 * exp_avgs[i].double() + (1 - beta1) * g
        v = beta2 * exp_avg_sqs[i].double() + (1 - beta2) * g * g
        denominator = (v / (1 - beta2**step)).sqrt() + eps
        weight = old * (1 - lr * weight_decay) - lr * m / (1 - beta1**step) / denominator
        for out, x in ((new, scattered(p, item, offset, weight)), (first, m), (second, v), (copies, weight)):
            out.append(x)
    return [*new, *first, *second, *(copies if masters else [])]


_CLIPPED = (torch.tensor(0.25), torch.tensor([8.0]), torch.tensor(0.0))

CASE = OpCase(
    op=InPlace(OP, (0, 2, 3, 4)),
    samples={
        **{kind: _sample(kind) for kind in MASKS},
        **{f"{kind}, compact": _sample(kind, compact=True) for kind in ("random", "runs", "all")},
        "masters": _sample("random", masters=True),
        "masters of runs": _sample("runs", masters=True),
        "clipped, scaled, maximized": _sample("random", _CLIPPED, True),
        "found infinity": _sample("random", (None, None, torch.tensor([2.0]))),
        "whole blocks": _sample("rare", shapes=[(65536,), (65537,), (0,), (131072,)]),
        "counted steps": _sample("random", steps=[torch.tensor(float(n)) for n in (0, 1, 9, 99, 9999)]),
        "no tensor": _sample("random", shapes=[]),
    },
    truth=_truth,
    compare=compare,
)
