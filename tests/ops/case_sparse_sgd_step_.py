import torch

from taskarith_fast.ops.sparse_sgd_step_ import OP
from tests.ops.cases import InPlace, OpCase
from tests.ops.sparse_step_samples import MASKS, Sample, chosen, compare, factor_of, scattered


def _sample(
    kind, scalars=(None, None, None), momentum=0.9, nesterov=False, step=5, maximize=False, steps=(), **options
):
    def make(dtype):
        s = Sample(kind, dtype, **options)
        lists = (s.params, s.grads, s.exp_avgs if momentum else [], s.masters, *s.selection_lists, [])
        return (*lists, *scalars, 0.1, momentum, 0.0 if nesterov else 0.3, 0.1, nesterov, list(steps), step, maximize)

    return make


def _truth(params, grads, buffers, masters, items, offsets, _, clip, grad_scale, found_inf, *scalars):
    lr, momentum, dampening, weight_decay, nesterov, steps, step, maximize = scalars
    if found_inf is not None and found_inf.item():
        return [x.double() for x in (*params, *buffers, *masters)]
    new, states, copies = [], [], []
    for i, (p, item, offset) in enumerate(zip(params, items, offsets, strict=True)):
        old = masters[i].double() if masters else chosen(p, p.numel(), item, offset)
        g = chosen(grads[i], p.numel(), item, offset) * factor_of(clip, grad_scale, maximize) + weight_decay * old
        step = int(steps[i]) + 1 if steps else step
        if buffers:
            states.append(momentum * buffers[i].double() + (1 if step == 1 else 1 - dampening) * g)
            g = g + momentum * states[-1] if nesterov else states[-1]
        copies.append(old - lr * g)
        new.append(scattered(p, item, offset, copies[-1]))
    return [*new, *states, *(copies if masters else [])]


CASE = OpCase(
    op=InPlace(OP, (0, 2, 3)),
    samples={
        **{kind: _sample(kind) for kind in MASKS},
        "compact": _sample("random", compact=True),
        "nesterov": _sample("random", nesterov=True),
        "no momentum": _sample("random", momentum=0.0),
        "first step": _sample("random", step=1),
        "counted steps": _sample("random", steps=[torch.tensor(float(n)) for n in (0, 1, 9, 99, 9999)]),
        "masters": _sample("runs", masters=True),
        "clipped, scaled, maximized": _sample("random", (torch.tensor(0.25), torch.tensor([8.0]), None), maximize=True),
        "found infinity": _sample("random", (None, None, torch.tensor([2.0]))),
    },
    truth=_truth,
    compare=compare,
)
