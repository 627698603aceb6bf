"""Pair operators: values and gradients against torch.func.jvp, absent tangents, guards."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp

from taskarith_fast import ops
from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.dual_glu import FORMS
from taskarith_fast.ops.linear import linear_backward, linear_route


def _draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, W, B = _draw(3, 5, 8), _draw(6, 8, seed=1), _draw(6, seed=2)
ROW, ROW2 = _draw(8, seed=3), _draw(8, seed=4)
IMAGES, PATCHES = _draw(2, 3, 8, 8, seed=5), _draw(4, 3, 4, 4, seed=6)
Q = [_draw(2, 2, 7, 4, seed=7 + i) for i in range(3)]
SEEN = _draw(7, 7, seed=11) > -0.7
FLOAT_MASK = _draw(2, 1, 7, 7, seed=12)

# Name -> (the operator on pairs, the plain function, its tensors).
CASES = {
    "linear": (lambda p: ops.dual_linear(*p[0], *_parameters(p[1:])), F.linear, (X, W, B)),
    "patch_embed": (
        lambda p: ops.dual_patch_embed(*p[0], *_parameters(p[1:])),
        lambda x, w, b: F.conv2d(x, w, b, stride=4),
        (IMAGES, PATCHES, B[:4]),
    ),
    "patch_embed, narrow": (
        lambda p: ops.dual_patch_embed(*p[0], *_parameters(p[1:])),
        lambda x, w, b: F.conv2d(x, w, b, stride=(3, 2)),
        (IMAGES, PATCHES[..., :3, :2], B[:4]),
    ),
    "patch_embed, overlapping": (
        lambda p: ops.dual_patch_embed(*p[0], *_parameters(p[1:]), stride=2, padding=1),
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
        (IMAGES, PATCHES, B[:4]),
    ),
    "layer_norm": (
        lambda p: ops.dual_layer_norm(*p[0], *_parameters(p[1:])),
        lambda x, w, b: F.layer_norm(x, (8,), w, b),
        (X, ROW, ROW2),
    ),
    "rms_norm": (
        lambda p: ops.dual_rms_norm(*p[0], *_parameters(p[1:])),
        lambda x, w: F.rms_norm(x, (8,), w),
        (X, ROW),
    ),
    "residual": (lambda p: ops.dual_residual(*p[0], *p[1]), torch.add, (X, X.flip(0))),
    "layer_scale": (
        lambda p: ops.dual_residual(*p[0], *p[1], *p[2]),
        lambda t, z, g: t + g * z,
        (X, X.flip(0), ROW),
    ),
    "attention": (lambda p: ops.dual_attention(*p[0], *p[1], *p[2]), F.scaled_dot_product_attention, Q),
    "attention, causal": (
        lambda p: ops.dual_attention(*p[0], *p[1], *p[2], causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        Q,
    ),
    "attention, bool mask": (
        lambda p: ops.dual_attention(*p[0], *p[1], *p[2], mask=SEEN),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=SEEN),
        Q,
    ),
    "attention, float mask": (
        lambda p: ops.dual_attention(*p[0], *p[1], *p[2], mask=FLOAT_MASK, scale=0.2),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=FLOAT_MASK, scale=0.2),
        Q,
    ),
    "attention across, added bias": (
        lambda p: ops.dual_attention(*p[0], *p[1], *p[2], mask=p[3][0], dmask=p[3][1]),
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        (Q[0][:, :, :5], *Q[1:], _draw(1, 2, 5, 7, seed=13)),
    ),
    "rms_norm without a weight": (lambda p: ops.dual_rms_norm(*p[0]), lambda x: F.rms_norm(x, (8,)), (X,)),
    "layer_norm without a bias": (
        lambda p: ops.dual_layer_norm(*p[0], p[1][0], dweight=p[1][1]),
        lambda x, w: F.layer_norm(x, (8,), w),
        (X, ROW),
    ),
    **{
        f"gated, {form}": (
            lambda p, form=form: ops.dual_glu(*p[0], *p[1], form=form),
            lambda a, b, g=g: g(a) * b,
            (X, X.flip(0)),
        )
        for form, g in FORMS.items()
    },
    "gelu, none": (lambda p: ops.dual_gelu(*p[0]), F.gelu, (X,)),
    "gelu, tanh": (
        lambda p: ops.dual_gelu(*p[0], approximate="tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        (X,),
    ),
    "gelu, quick": (
        lambda p: ops.dual_gelu(*p[0], approximate="quick"),
        lambda x: x * torch.sigmoid(1.702 * x),
        (X,),
    ),
}


def _parameters(pairs):
    """(w, dw), (b, db) as w, b, dw, db."""
    return [value for value, _ in pairs] + [tangent for _, tangent in pairs]


def _tangents(tensors):
    return [torch.roll(t, 1, 0).flip(-1).clone() for t in tensors]


@pytest.mark.parametrize("name", CASES)
def test_values_tangents_and_gradients_equal_those_of_torch(name):
    dual, plain, tensors = CASES[name]
    tangents = [t.requires_grad_() for t in _tangents(tensors)]
    y, dy = dual(list(zip(tensors, tangents, strict=True)))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        truth = jvp(plain, tuple(tensors), tuple(t.detach() for t in tangents))
        leaves = [t.clone().requires_grad_() for t in tensors]
        ordinary = torch.autograd.grad((plain(*leaves) * truth[0]).sum(), leaves)
    torch.testing.assert_close(y, truth[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dy, truth[1], rtol=1e-10, atol=1e-10)
    assert not y.requires_grad
    ours = torch.autograd.grad((dy * truth[0]).sum(), tangents)
    for a, b in zip(ours, ordinary, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_passes(name):
    dual, _, tensors = CASES[name]
    tangents = [t.requires_grad_() for t in _tangents(tensors)]
    assert torch.autograd.gradcheck(lambda *ts: dual(list(zip(tensors, ts, strict=True)))[1], tangents)


@pytest.mark.parametrize("name", CASES)
def test_an_absent_tangent_is_a_tangent_of_zeros(name):
    dual, _, tensors = CASES[name]
    tangents = _tangents(tensors)
    y, nothing = dual([(t, None) for t in tensors])
    assert nothing is None
    for i in range(len(tensors)):
        alone = [t if i == j else None for j, t in enumerate(tangents)]
        zeros = [t if i == j else torch.zeros_like(t) for j, t in enumerate(tangents)]
        with_none, with_zeros = (dual(list(zip(tensors, ts, strict=True))) for ts in (alone, zeros))
        torch.testing.assert_close(with_none[1], with_zeros[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(with_none[0], y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_refused(name):
    dual, _, tensors = CASES[name]

    def run(*values):
        return dual([(v, torch.ones_like(v)) for v in values])[1]

    ones = tuple(torch.ones_like(t) for t in tensors)
    with pytest.raises(ArgumentError, match="forward-mode"):
        jvp(run, tuple(tensors), ones)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ArgumentError, match="forward-mode"):
        run(*(torch.autograd.forward_ad.make_dual(t, o) for t, o in zip(tensors, ones, strict=True)))


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"patch_embed, overlapping"}))
def test_only_primal_tensors_are_kept_for_the_backward_pass(name):
    dual, _, tensors = CASES[name]
    tangents = [t.requires_grad_() for t in _tangents(tensors)]
    forbidden, kept = {t.data_ptr() for t in tangents}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        dual(list(zip(tensors, tangents, strict=True)))
    assert not forbidden & set(kept)


@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"groups": 1, "padding": "valid"}, {"stride": 1}], ids=str)
def test_patches_by_the_registered_operator_are_convolutions(options):
    x, w, b = IMAGES.float(), PATCHES.float(), B[:4].float()
    dx, dw, db = _tangents([x, w, b])
    y, dy = ops.dual_patch_embed(x, dx, w, b, dw, db, backend="reference", **options)
    truth, tangent = jvp(lambda *t: F.conv2d(*t, **{"stride": 4, **options}), (x, w, b), (dx, dw, db))
    torch.testing.assert_close(y, truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dy, tangent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("route", ["linear", "conv1x1"])
@pytest.mark.parametrize(("by_x", "by_weight"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_gradient_of_a_dense_layer_is_torchs_by_both_routes(route, by_x, by_weight):
    x, w, g = X.float(), W.float(), _draw(3, 5, 6, seed=9).float()
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    truth = torch.autograd.grad(F.linear(*leaves), leaves, g)
    with linear_route(route):
        grads = linear_backward(g, x if by_weight else None, w, by_x, by_weight)
    for asked, ours, theirs in zip((by_x, by_weight), grads, truth, strict=True):
        assert (ours is not None) == asked
        if asked:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_attention_of_odd_lengths_matches_the_dense_formula_in_float32():
    for length in (1, 13, 50, 97, 197):
        pairs = [_draw(1, 2, length, 64, seed=i).float() for i in range(6)]
        y, dy = ops.dual_attention(*pairs)
        exact = jvp(_dense_attention, tuple(t.double() for t in pairs[::2]), tuple(t.double() for t in pairs[1::2]))
        torch.testing.assert_close(y.double(), exact[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dy.double(), exact[1], rtol=2e-5, atol=2e-5)


def _dense_attention(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ v


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match=r"dx must have the shape of x, \[3, 5, 8\], got \[8\]"):
        ops.dual_linear(X, ROW, W)
    with pytest.raises(ArgumentError, match=r"dbias must have the shape of bias, None, got \[6\]"):
        ops.dual_linear(X, None, W, None, None, B)
    with pytest.raises(ArgumentError, match=r"weight must have shape \[8\], got \[6\]"):
        ops.dual_layer_norm(X, X, B)
    with pytest.raises(ArgumentError, match=r"q, k, v must have shapes \[B, H, L, d\]"):
        ops.dual_attention(X, X, X, X, X, X)
    with pytest.raises(ArgumentError, match="mask and causal exclude each other"):
        ops.dual_attention(*(t for q in Q for t in (q, q)), mask=SEEN, causal=True)
    with pytest.raises(ArgumentError, match="approximate must be one of none, tanh, quick"):
        ops.dual_gelu(X, X, approximate="erf")
