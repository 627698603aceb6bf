"""Merges that share work are the merges made one by one."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging import METHODS
from taskarith_fast.merging.cart_factors import CartFactors
from taskarith_fast.merging.sharing import direction_of, split_scale

SCALED = [name for name, row in METHODS.items() if "scale" in row.parameters]
SCALES = (-0.7, 0.0, 0.3, 1.0, 2.5)
SHAPES = {
    "blocks.0.attn.qkv.weight": (36, 12),
    "blocks.0.mlp.fc1.weight": (24, 12),
    "blocks.0.norm1.weight": (12,),
    "head.weight": (3, 12),
    "temperature": (),
}


def models(dtype=torch.float32, tasks=3):
    """A base and fine-tuned models; their deltas are a hundredth of the weights, as fine-tuning makes them."""
    draw = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=draw) for n, s in SHAPES.items()}
    tuned = [{n: t + 0.01 * torch.randn(t.shape, generator=draw) for n, t in base.items()} for _ in range(tasks)]
    states = [{n: t.to(dtype) for n, t in state.items()} | {"steps": torch.tensor(3)} for state in (base, *tuned)]
    return states[0], states[1:]


def test_every_method_with_a_scale_is_covered():
    assert set(SCALED) >= {"task_arithmetic", "ties", "dare", "dare+ties", "breadcrumbs", "consensus", "cart"}


@pytest.mark.parametrize("method", SCALED)
def test_a_direction_gives_the_merge_of_every_scale(method):
    base, tuned = models()
    direction = direction_of(base, tuned, method)
    out = {name: torch.empty_like(t) for name, t in base.items()}
    for scale in SCALES:
        direction.write(scale, out)
        for name, expected in ta.merge(base, tuned, method, scale=scale).items():
            step = expected.double() - base[name].double()
            # Two roundings of the stored direction and one of the sum.
            limit = torch.finfo(torch.float32).eps * (expected.double().abs() + 2 * step.abs())
            assert torch.all((out[name].double() - expected.double()).abs() <= limit), (name, scale)


def test_the_same_holds_where_the_base_is_zero():
    base, tuned = models()
    base = {n: t.clone().zero_() if t.is_floating_point() else t for n, t in base.items()}
    direction = direction_of(base, tuned, "ties", density=0.3)
    for scale in SCALES:
        expected = ta.merge(base, tuned, "ties", density=0.3, scale=scale)
        for name, tensor in direction.at(scale).items():
            torch.testing.assert_close(tensor, expected[name], rtol=2.0**-22, atol=0)
            assert torch.equal(tensor == 0, expected[name] == 0)


def test_models_that_are_not_float32_have_no_direction():
    with pytest.raises(ArgumentError, match=r"base must be float32 for a direction, got torch\.bfloat16 in blocks"):
        direction_of(*models(torch.bfloat16), "ties")


def test_factors_of_narrow_models_are_written_into_a_wide_one():
    base, tuned = models(torch.bfloat16)
    direction = CartFactors(base, tuned).direction(0.1)
    wide = {name: t.float() if t.is_floating_point() else t.clone() for name, t in base.items()}
    direction.write(0.5, wide)
    for name, expected in direction.at(0.5).items():
        assert expected.dtype == base[name].dtype
        assert torch.equal(wide[name], expected.to(wide[name].dtype))


def test_only_one_number_as_scale_is_split_off():
    assert split_scale("ties", {"density": 0.2, "scale": 2}) == ({"density": 0.2}, 2.0)
    assert split_scale("average", {}) is None
    assert split_scale("task_arithmetic", {"scale": [0.1, 0.2]}) is None


def test_bad_parameters_are_refused_by_name():
    base, tuned = models()
    with pytest.raises(ArgumentError, match="density must be in"):
        direction_of(base, tuned, "ties", density=2.0)
    with pytest.raises(ArgumentError, match="did you mean 'density'"):
        direction_of(base, tuned, "ties", densty=0.2)


@pytest.mark.parametrize("split_qkv", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_come_back_from_a_file_to_the_same_bytes(dtype, split_qkv, tmp_path):
    base, tuned = models(dtype)
    factors = CartFactors(base, tuned, max_rank_ratio=0.5, split_qkv=split_qkv)
    factors.save(tmp_path / "factors.safetensors")
    again = CartFactors.load(tmp_path / "factors.safetensors")
    for ratio in (0.1, 0.5):
        ours, theirs = again.merge(rank_ratio=ratio, scale=1.3), factors.merge(rank_ratio=ratio, scale=1.3)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_checkpoint_is_no_factors(tmp_path):
    ta.save_state_dict({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"expected factors written by CartFactors\.save"):
        CartFactors.load(tmp_path / "a.safetensors")
