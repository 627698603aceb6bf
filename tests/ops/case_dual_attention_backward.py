import torch

from taskarith_fast.ops.dual_attention_backward import OP
from tests.ops.case_dual_attention import CASE as FORWARD
from tests.ops.case_dual_attention import _truth as forward_truth
from tests.ops.case_dual_attention_biased import _truth as biased_truth
from tests.ops.cases import OpCase, generator
from tests.ops.dual_budget import assert_within_term_budget, double


def _of(name, asked=(True, True, True, False)):
    """The arguments of a sample of dual_attention, with a cotangent."""

    def make(dtype):
        q, _, k, _, v, _, mask, causal, scale, _ = FORWARD.samples[name](dtype)
        grad = torch.randn(*q.shape[:-1], v.shape[-1], generator=generator(7)).to(dtype)
        return grad, q, k, v, mask, causal, scale, *asked

    return make


def _truth(grad, q, k, v, mask, causal, scale, *asked):
    """By the forward truth: <grad, dy> is linear in each tangent, and its coefficients are the gradients."""
    leaves = [t.double() for t in (q, k, v)]
    dmask = torch.zeros(*q.shape[:-1], k.shape[-2], dtype=torch.float64, requires_grad=True)
    tangents = [*(torch.zeros_like(t, requires_grad=True) for t in leaves), dmask]
    pairs = [t for pair in zip(leaves, tangents, strict=False) for t in pair]
    if asked[3]:
        _, dy = biased_truth(*pairs, mask, causal, scale, True, dmask)
    else:
        _, dy = forward_truth(*pairs, mask, causal, scale, True)
    grads = torch.autograd.grad((dy * grad.double()).sum(), tangents, allow_unused=not asked[3])
    return [g if by else dmask.new_empty(0) for g, by in zip(grads, asked, strict=True)]


def _compare(args, out, eager, truth):
    grad, q, k, v, _, _, scale, *asked = (double(x) for x in args)
    assert [o.shape for o in out] == [t.shape for t in truth]
    if not q.numel():
        assert all(torch.equal(o.double(), t) for o, t in zip(out, truth, strict=True))
        return
    scores = 1 + scale * (q.abs() @ k.abs().transpose(-1, -2)).amax((-1, -2), keepdim=True)
    slopes = 2 * scale * (grad.abs() @ v.abs().transpose(-1, -2)).amax((-1, -2), keepdim=True)
    terms = (
        slopes * k.abs().amax(-2, keepdim=True) * scores,
        slopes * q.abs().sum(-2, keepdim=True) * scores,
        grad.abs().sum(-2, keepdim=True) * scores,
        slopes / scale * scores,
    )
    for o, e, t, size, by in zip(out, eager, truth, terms, asked, strict=True):
        if by:
            assert_within_term_budget(o, e, t, size)


CASE = OpCase(
    op=OP,
    samples={
        **{name: _of(name) for name in ("odd", "one token", "more than a strip", "heads of 128", "odd head", "causal")},
        **{name: _of(name) for name in ("a mask for all", "a mask a head", "a row that sees nothing")},
        "fused projection": _of("fused projection"),
        "no query": _of("no query"),
        "by queries": _of("odd", (True, False, False, False)),
        "by keys": _of("odd", (False, True, False, False)),
        "by values": _of("odd", (False, False, True, False)),
        "by the mask": _of("odd", (False, False, False, True)),
        "by the mask, causal": _of("causal", (True, True, True, True)),
        "by the mask, heads of 128": _of("heads of 128", (True, True, True, True)),
    },
    truth=_truth,
    compare=_compare,
)
