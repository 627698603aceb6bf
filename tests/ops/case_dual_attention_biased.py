import torch
from torch.func import jvp

from taskarith_fast.ops.dual_attention import BIASED
from tests.ops import case_dual_attention as plain
from tests.ops.cases import OpCase, generator
from tests.ops.dual_budget import assert_within_term_budget


def _sample(queries, keys, present="qkv", bias=None, mask=True, **options):
    """A mask as T5 has it: finite, position biases [1, H, L, S] where seen, the type's minimum where not."""

    def make(dtype):
        heads = options.get("heads", 2)
        args = plain._sample(queries, keys, present=present, **options)(dtype)
        g = generator(8)
        shape = bias or (1, heads, queries, keys)
        added, dmask = (torch.randn(shape, generator=g).expand(2, heads, queries, keys) for _ in range(2))
        seen = torch.arange(keys) < torch.tensor([keys, max(1, keys - 2)])[:, None, None, None]
        added = torch.where(seen, added, torch.finfo(torch.float32).min) if mask else None
        return *args[:6], added, *args[7:], torch.where(seen, dmask, 0.0) if mask else dmask

    return make


def _truth(q, dq, k, dk, v, dv, mask, causal, scale, with_value, dmask):
    primals = (q.double(), k.double(), v.double(), torch.zeros_like(dmask.double()))
    tangents = tuple(
        torch.zeros_like(x) if t is None else t.double() for x, t in zip(primals, (dq, dk, dv, dmask), strict=True)
    )

    def value(q, k, v, moved):
        scores = scale * q @ k.transpose(-1, -2) + moved
        scores = scores if mask is None else scores + mask.double()
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        return torch.softmax(scores, -1) @ v

    y, dy = jvp(value, primals, tangents)
    return [y if with_value else y.new_empty(0), dy]


def _compare(args, out, eager, truth):
    """The budget of the plain operator, and the terms of the mask's tangent."""
    *rest, dmask = args
    q, dq, k, dk, v, dv, _, _, scale, _ = (x.double() if isinstance(x, torch.Tensor) else x for x in rest)
    scores = 4 + scale * (q.abs() @ k.abs().transpose(-1, -2)).amax(-1, keepdim=True)
    steps = dmask.double().abs().amax(-1, keepdim=True)
    for a, b in ((dq, k), (q, dk)):
        if a is not None and b is not None:
            steps = steps + scale * (a.abs() @ b.abs().transpose(-1, -2)).amax(-1, keepdim=True)
    terms = 2 * steps * v.abs().amax(-2, keepdim=True)
    terms = terms if dv is None else terms + dv.abs().amax(-2, keepdim=True)
    assert_within_term_budget(out[1], eager[1], truth[1], terms * (1 + scores))
    if out[0].numel():
        assert_within_term_budget(out[0], eager[0], truth[0], v.abs().amax(-2, keepdim=True) * (1 + scores))


CASE = OpCase(
    op=BIASED,
    samples={
        "odd": _sample(7, 7),
        "bias only": _sample(7, 5, present=""),
        "cross attention": _sample(5, 19, present="qk"),
        "values and bias": _sample(7, 5, present="v"),
        "more than a strip": _sample(131, 131, depth=16, heads=1),
        "a bias a text": _sample(9, 13, bias=(2, 2, 9, 13)),
        "a bias for all": _sample(9, 13, bias=(9, 13)),
        "no mask": _sample(9, 13, mask=False),
        "causal": _sample(101, 101, causal=True),
        "without the value": _sample(7, 5, with_value=False),
        "no query": _sample(0, 5),
    },
    truth=_truth,
    compare=_compare,
    gradient=(1, 3, 5, 10),
)
