import torch
from torch.func import jvp

from taskarith_fast.ops.dual_attention import OP
from tests.ops.cases import OpCase, generator
from tests.ops.dual_budget import assert_within_term_budget, double


def _sample(queries, keys, depth=8, width=None, present="qkv", mask=None, causal=False, heads=2, with_value=True):
    def make(dtype):
        g = generator(3)
        sizes = {"q": (queries, depth), "k": (keys, depth), "v": (keys, width or depth)}
        tensors = []
        for name, size in sizes.items():
            pair = [torch.randn(2, heads, *size, generator=g).to(dtype) for _ in range(2)]
            tensors += [pair[0], pair[1] if name in present else None]
        added = None
        if mask is not None:
            added = torch.where(torch.rand(mask, generator=g) < 0.7, torch.randn(mask, generator=g), -torch.inf)
            added = added.expand(2, heads, queries, keys)
        return *tensors, added, causal, depth**-0.5, with_value

    return make


def _interleaved(dtype):
    """Queries, keys and values as a fused projection gives them: one tensor, heads inside."""
    g = generator(4)
    both = [torch.randn(2, 7, 3, 2, 8, generator=g).to(dtype).permute(2, 0, 3, 1, 4) for _ in range(2)]
    (q, k, v), (dq, dk, dv) = both
    return q, dq, k, dk, v, dv, None, False, 0.3, True


def _truth(q, dq, k, dk, v, dv, mask, causal, scale, with_value):
    primals = tuple(x.double() for x in (q, k, v))
    tangents = tuple(
        torch.zeros_like(x) if t is None else t.double() for x, t in zip(primals, (dq, dk, dv), strict=True)
    )

    def value(q, k, v):
        scores = scale * q @ k.transpose(-1, -2)
        scores = scores if mask is None else scores + mask.double()
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        seen = torch.isfinite(scores).any(-1, keepdim=True)
        return torch.where(seen, torch.softmax(torch.where(seen, scores, 0.0), -1), 0.0) @ v

    y, dy = jvp(value, primals, tangents)
    return [y if with_value else y.new_empty(0), dy]


def _compare(args, out, eager, truth):
    q, dq, k, dk, v, dv, _, _, scale, _ = (double(x) for x in args)
    scores = scale * (q.abs() @ k.abs().transpose(-1, -2)).amax(-1, keepdim=True)
    steps = scale * sum(
        (a.abs() @ b.abs().transpose(-1, -2)).amax(-1, keepdim=True)
        for a, b in ((dq, k), (q, dk))
        if a is not None and b is not None
    )
    terms = 2 * steps * v.abs().amax(-2, keepdim=True)
    terms = terms if dv is None else terms + dv.abs().amax(-2, keepdim=True)
    assert_within_term_budget(out[1], eager[1], truth[1], terms * (1 + scores))
    if out[0].numel():
        assert_within_term_budget(out[0], eager[0], truth[0], v.abs().amax(-2, keepdim=True) * (1 + scores))
    assert out[0].shape == truth[0].shape


CASE = OpCase(
    op=OP,
    samples={
        "odd": _sample(7, 7),
        "one token": _sample(1, 1),
        "queries only": _sample(7, 5, present="q"),
        "keys only": _sample(7, 5, present="k"),
        "values only": _sample(7, 5, present="v"),
        "more than a strip": _sample(197, 197, depth=16, heads=1),
        "heads of 128": _sample(13, 29, depth=128),
        "odd head": _sample(5, 9, depth=7, width=11),
        "causal": _sample(101, 101, causal=True),
        "a mask for all": _sample(9, 13, mask=(9, 13)),
        "a mask a head": _sample(9, 13, mask=(2, 2, 9, 13)),
        "a row that sees nothing": lambda dtype: _blind(_sample(5, 5, mask=(5, 5))(dtype)),
        "without the value": _sample(7, 5, with_value=False),
        "values only, without the value": _sample(7, 5, present="v", with_value=False),
        "fused projection": _interleaved,
        "no query": _sample(0, 5),
    },
    truth=_truth,
    compare=_compare,
    gradient=(1, 3, 5),
)


def _blind(args):
    mask = args[6].clone()
    mask[:, :, 2] = -torch.inf
    return (*args[:6], mask, *args[7:])
