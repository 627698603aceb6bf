import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.cart import cart, is_cart_matrix
from taskarith_fast.merging.cart_factors import CartFactors

BLOCK = "visual.transformer.resblocks.0."
SHAPES = {
    "visual.class_embedding": (24,),
    "visual.conv1.weight": (24, 3, 4, 4),
    "visual.proj": (24, 10),
    BLOCK + "ln_1.weight": (24,),
    BLOCK + "attn.in_proj_weight": (72, 24),
    BLOCK + "attn.in_proj_bias": (72,),
    BLOCK + "attn.out_proj.weight": (24, 24),
    BLOCK + "mlp.c_fc.weight": (96, 24),
    BLOCK + "mlp.c_proj.weight": (24, 96),
}
MATRICES = [BLOCK + s for s in ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")]


def _models(tasks=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    models = [
        {n: (b + 0.1 * torch.randn(b.shape, generator=g)).to(dtype) for n, b in base.items()} for _ in range(tasks)
    ]
    return {n: b.to(dtype) for n, b in base.items()} | {"step": torch.tensor(3)}, [
        m | {"step": torch.tensor(3)} for m in models
    ]


def _truncate(delta, rank):
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def _truth(models, name, rank_ratio, scale, rows=None):
    """METHODS' formula in float64, on all rows of a matrix or on some."""
    tensors = [m[name].double()[rows or slice(None)] for m in models]
    mean = sum(tensors) / len(tensors)
    rank = max(1, int(rank_ratio * min(mean.shape)))
    return mean + scale * sum(_truncate(t - mean, rank) for t in tensors)


def _assert_equal(left, right):
    assert list(left) == list(right)
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("svd", ["certified", "exact"])
@pytest.mark.parametrize(("rank_ratio", "scale"), [(0.08, 1.0), (0.3, 2.0), (0.01, -0.5)])
def test_equals_the_formula(rank_ratio, scale, svd):
    base, models = _models()
    merged, mean = cart(base, models, rank_ratio=rank_ratio, scale=scale, svd=svd), average(base, models)
    assert list(merged) == list(base)
    for name in base:
        if name in MATRICES:
            truth = _truth(models, name, rank_ratio, scale).float()
            torch.testing.assert_close(merged[name], truth, rtol=0, atol=2e-6)
        else:
            assert torch.equal(merged[name], mean[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_rank_and_scale_zero_give_the_average(dtype):
    base, models = _models(dtype=dtype)
    _assert_equal(cart(base, models, rank_ratio=1.0, scale=1.7), average(base, models))
    _assert_equal(cart(base, models, scale=0.0), average(base, models))
    _assert_equal(cart(base, models, energy=1.0), average(base, models))


def test_almost_full_rank_is_close_to_the_average():
    base, models = _models()
    name = BLOCK + "mlp.c_fc.weight"
    distance = [
        float((cart(base, models, rank_ratio=r)[name] - average(base, models)[name]).norm()) for r in (0.5, 0.96, 0.999)
    ]
    assert distance[0] > distance[1] > 0
    assert distance[1] < 0.5 * distance[0]


def test_the_base_cancels_out():
    base, models = _models()
    other = {n: torch.randn_like(b) if b.is_floating_point() else b for n, b in base.items()}
    left, right = cart(base, models, scale=2.0), cart(other, models, scale=2.0)
    for name in base:
        torch.testing.assert_close(left[name], right[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    base, models = _models(dtype=dtype)
    merged = cart(base, models, rank_ratio=0.3, scale=1.5)
    for name in MATRICES:
        truth = _truth(models, name, 0.3, 1.5)
        assert merged[name].dtype == dtype
        torch.testing.assert_close(merged[name].double(), truth, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_fused_projection_is_whole_by_default_and_split_by_option():
    base, models = _models()
    name = BLOCK + "attn.in_proj_weight"
    split = cart(base, models, rank_ratio=0.2, split_qkv=True)[name]
    truth = torch.cat([_truth(models, name, 0.2, 1.0, slice(r, r + 24)) for r in (0, 24, 48)]).float()
    torch.testing.assert_close(split, truth, rtol=0, atol=2e-6)
    assert not torch.allclose(split, cart(base, models, rank_ratio=0.2)[name], atol=1e-4)


def test_energy_keeps_the_least_rank_that_reaches_it():
    base, models = _models()
    merged = cart(base, models, energy=0.6, scale=1.3)
    for name in MATRICES:
        tensors = [m[name].double() for m in models]
        mean = sum(tensors) / len(tensors)
        total = torch.zeros_like(mean)
        for t in tensors:
            share = torch.linalg.svdvals(t - mean).square()
            rank = int(((share.cumsum(0) / share.sum()) >= 0.6).nonzero()[0]) + 1
            total += _truncate(t - mean, rank)
        torch.testing.assert_close(merged[name], (mean + 1.3 * total).float(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("svd", ["certified", "exact"])
@pytest.mark.parametrize("rank_ratio", [0.01, 0.3, 0.9])
def test_the_smallest_order_keeps_the_last_triplets(rank_ratio, svd):
    base, models = _models()
    base["attn.column"] = torch.randn(5, 1)  # full rank is 1: everything is kept, which is the average
    for m in models:
        m["attn.column"] = base["attn.column"] + torch.randn(5, 1)
    merged = cart(base, models, rank_ratio=rank_ratio, scale=1.5, order="smallest", svd=svd)
    for name in MATRICES:
        tensors = [m[name].double() for m in models]
        mean, total = sum(tensors) / len(tensors), torch.zeros_like(tensors[0])
        rank = max(1, int(rank_ratio * min(mean.shape)))
        for t in tensors:
            u, s, vh = torch.linalg.svd(t - mean, full_matrices=False)
            total += (u[:, -rank:] * s[-rank:]) @ vh[-rank:]
        torch.testing.assert_close(merged[name], (mean + 1.5 * total).float(), rtol=0, atol=3e-6)
    assert torch.equal(merged["attn.column"], average(base, models)["attn.column"])


def test_both_orders_together_give_the_average_back():
    base, models = _models()
    for name in MATRICES:
        full = min(base[name].shape)
        low = cart(base, models, rank_ratio=(full // 3) / full, order="smallest")[name]
        high = cart(base, models, rank_ratio=(full - full // 3) / full)[name]
        torch.testing.assert_close(low + high, 2 * average(base, models)[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("split_qkv", [False, True])
def test_stored_factors_merge_as_cart_does(split_qkv):
    base, models = _models()
    factors = CartFactors(base, models, max_rank_ratio=0.4, split_qkv=split_qkv)
    for rank_ratio in (0.05, 0.2, 0.4):
        for scale in (0.0, 0.5, 2.0):
            ours = factors.merge(rank_ratio=rank_ratio, scale=scale)
            theirs = cart(base, models, rank_ratio=rank_ratio, scale=scale, split_qkv=split_qkv)
            assert list(ours) == list(theirs)
            for name in base:
                torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)
    with pytest.raises(ArgumentError, match=r"rank_ratio must be at most max_rank_ratio=0.4, got 0.5"):
        factors.merge(rank_ratio=0.5)


def test_one_model_is_returned_as_it_is():
    base, models = _models(tasks=1)
    merged = cart(base, models, scale=2.0)
    for name in base:
        torch.testing.assert_close(merged[name], models[0][name], rtol=1e-6, atol=1e-6)


def test_the_input_is_left_alone():
    base, models = _models()
    before = [{n: t.clone() for n, t in state.items()} for state in (base, *models)]
    cart(base, models)
    CartFactors(base, models).merge(rank_ratio=0.1)
    for state, copy in zip((base, *models), before, strict=True):
        _assert_equal(state, copy)


@pytest.mark.parametrize(
    ("name", "decomposed"),
    [
        (BLOCK + "attn.in_proj_weight", True),
        (BLOCK + "mlp.c_fc.weight", True),
        (BLOCK + "attn.in_proj_bias", False),
        ("visual.proj", False),
        ("visual.positional_embedding", False),
        ("blocks.3.attn.qkv.weight", True),
        ("blocks.3.mlp.fc1.weight", True),
        ("patch_embed.proj.weight", False),
        ("head.weight", False),
        ("encoder.layer.0.attention.attention.query.weight", True),
        ("encoder.layer.0.attention.output.dense.weight", True),
        ("encoder.layer.0.intermediate.dense.weight", True),
        ("encoder.layer.0.output.dense.weight", True),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", True),
        ("vision_model.encoder.layers.0.layer_norm1.weight", False),
        ("pooler.dense.weight", False),
        ("text_projection.weight", False),
    ],
)
def test_matrices_inside_blocks_are_decomposed(name, decomposed):
    assert is_cart_matrix(name, torch.zeros(4, 4)) is decomposed
    assert not is_cart_matrix(name, torch.zeros(4))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank_ratio": 0.0}, r"rank_ratio must be in \(0, 1\], got 0.0"),
        ({"rank_ratio": 1.5}, r"rank_ratio must be in \(0, 1\], got 1.5"),
        ({"energy": 0.0}, r"energy must be in \(0, 1\], got 0.0"),
        ({"scale": float("nan")}, "scale must be finite, got nan"),
        ({"order": "middle"}, "order must be one of largest, smallest; got 'middle'"),
        ({"order": "smallest", "energy": 0.5}, "energy must be None with order='smallest'"),
        ({"svd": "fast"}, "svd must be one of certified, exact; got 'fast'"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        cart(*_models(), **parameters)
