"""Masks as values: packed in memory and on disk, boolean where they are looked up."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError, CheckpointError

SHAPES = st.lists(st.integers(0, 5), max_size=3)


def _random(shapes, seed=0, density=0.4):
    g = torch.Generator().manual_seed(seed)
    return {f"layer.{i}": torch.rand(tuple(s), generator=g) < density for i, s in enumerate(shapes)}


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(SHAPES, max_size=4), seed=st.integers(0, 99), density=st.sampled_from([0.0, 0.3, 1.1]))
def test_packing_saving_and_loading_give_the_same_masks(tmp_path_factory, shapes, seed, density):
    given_masks = _random(shapes, seed, density)
    packed = ta.Masks.pack(given_masks)
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    packed.save(path, metadata={"method": "talos"})
    loaded = ta.Masks.load(path)
    assert loaded == packed and list(loaded) == list(given_masks)
    assert loaded.metadata == {"method": "talos"}
    for name, mask in given_masks.items():
        assert torch.equal(loaded[name], mask) and loaded.shape(name) == tuple(mask.shape)
        assert packed.packed(name).numel() == (mask.numel() + 7) // 8
        assert packed.count(name) == int(mask.sum())
    assert packed.numel == sum(m.numel() for m in given_masks.values())
    assert packed.density == packed.count() / max(packed.numel, 1)


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=3), seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_set_operations_are_those_of_the_booleans(shapes, seeds):
    a, b = (_random(shapes, s) for s in seeds)
    left, right = ta.Masks.pack(a), ta.Masks.pack(b)
    both, either = left & right, left | right
    for name in a:
        assert torch.equal(both[name], a[name] & b[name])
        assert torch.equal(either[name], a[name] | b[name])
        assert torch.equal((~left)[name], ~a[name])
    assert ~~left == left and (~left).count() == left.numel - left.count()
    assert left.iou(right) == (both.count() / either.count() if either.count() else 1.0)
    assert left.iou(left) == 1.0


def test_full_takes_shapes_and_tensors():
    ones = ta.Masks.full({"a": (3, 5), "b": torch.zeros(7), "c": ()}, True)
    assert ones.count() == ones.numel == 23 and ones.density == 1.0
    assert ones["a"].shape == (3, 5) and ones["c"].item()
    assert ones == ta.Masks.pack({name: torch.ones(ones.shape(name), dtype=torch.bool) for name in ones})
    assert ta.Masks.full({"a": (3, 5)}, False).count() == 0
    assert ones.to("cpu") == ones and ones != ~ones


def test_the_digest_tells_masks_apart():
    a = ta.Masks.pack({"x": torch.tensor([True, False]), "y": torch.tensor([[True, False]])})
    assert a.digest("x") != a.digest("y")
    assert a.digest("x") == ta.Masks.pack({"z": torch.tensor([True, False])}).digest("z")


def test_equal_masks_are_not_taken_for_tied_tensors(tmp_path):
    bits = torch.tensor([1], dtype=torch.uint8)
    ta.Masks({"a": bits, "b": bits}, {"a": (3,), "b": (1, 3)}).save(tmp_path / "m.safetensors")
    assert ta.Masks.load(tmp_path / "m.safetensors").shape("b") == (1, 3)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    ta.save_state_dict({"a": torch.zeros(1, dtype=torch.uint8)}, path)
    with pytest.raises(CheckpointError, match=r"expected masks written by Masks\.save"):
        ta.Masks.load(path)
    ta.TaskVector({"a": torch.zeros(1)}).save(path, overwrite=True)
    with pytest.raises(CheckpointError, match=r"expected masks written by Masks\.save"):
        ta.Masks.load(path)
    with pytest.raises(CheckpointError, match="exists already"):
        ta.Masks.full({"a": (3,)}, True).save(path)


@pytest.mark.parametrize(
    ("bits", "metadata", "match"),
    [
        ([7], {"schema": "2"}, "must have schema 1, got 2"),
        ([7], {"shapes": "{"}, "must hold the masks' shapes"),
        ([7], {"shapes": '{"a": [-3]}'}, "must hold the masks' shapes"),
        ([7], {"shapes": '{"b": [3]}'}, "a must be in both"),
        ([7, 0], {}, r"a: bits\[0\] must be uint8 \[1\] for 3 entries"),
        ([15], {}, "a has bits set after its last entry"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, bits, metadata, match):
    path = tmp_path / "m.safetensors"
    kind = {"taskarith": "masks", "schema": "1", "shapes": json.dumps({"a": [3]}), **metadata}
    ta.save_state_dict({"a": torch.tensor(bits, dtype=torch.uint8)}, path, metadata=kind)
    with pytest.raises(CheckpointError, match=match):
        ta.Masks.load(path)


def test_what_does_not_fit_is_refused():
    a = ta.Masks.full({"a": (3,)}, True)
    with pytest.raises(ArgumentError, match=r"a: both masks must have one shape, got \[3\] and \[4\]"):
        a & ta.Masks.full({"a": (4,)}, True)
    with pytest.raises(ArgumentError, match="b: both masks must have one shape, got no such mask"):
        a.iou(ta.Masks.full({"a": (3,), "b": (1,)}, True))
    with pytest.raises(ArgumentError, match="a: a mask must be bool"):
        ta.Masks.pack({"a": torch.ones(3)})
    with pytest.raises(ArgumentError, match="metadata must not use the name 'schema'"):
        a.save("nowhere.safetensors", metadata={"schema": "3"})
