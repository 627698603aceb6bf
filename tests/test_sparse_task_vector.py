"""Sparse task vectors are task vectors: the same arithmetic, a fraction of the bytes."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import CheckpointError


@pytest.fixture
def models():
    """A base, and two models that differ from it in a tenth of "w", nowhere in "still", everywhere in "b"."""
    g = torch.Generator().manual_seed(0)
    base = {
        "w": torch.randn(37, 41, generator=g),
        "still": torch.randn(19, generator=g).bfloat16(),
        "b": torch.randn(5, generator=g),
        "n": torch.tensor(2),
        "scalar": torch.tensor(0.5),
    }

    def tuned():
        moved = torch.rand(37, 41, generator=g) < 0.1
        delta = torch.where(moved, torch.randn(37, 41, generator=g), 0.0)
        return {**base, "w": base["w"] + delta, "b": base["b"] + torch.randn(5, generator=g)}

    return base, tuned(), tuned()


def _both(base, model):
    return ta.TaskVector.between(base, model), ta.SparseTaskVector.between(base, model)


def test_every_operation_equals_the_dense_one(models):
    base, a, b = models
    (dense_a, sparse_a), (dense_b, sparse_b) = _both(base, a), _both(base, b)
    for dense, sparse in (
        (dense_a, sparse_a),
        (-dense_a, -sparse_a),
        (0.3 * dense_a, 0.3 * sparse_a),
        (dense_a + dense_b, sparse_a + sparse_b),
        (dense_a - dense_b, sparse_a - sparse_b),
        (sum([dense_a, dense_b]), sum([sparse_a, sparse_b])),
    ):
        assert list(dense) == list(sparse)
        for name in dense:
            assert torch.equal(dense[name], sparse[name]) and torch.equal(dense[name], sparse.dense()[name]), name
        assert sparse.norm() == pytest.approx(dense.norm())
        expected, got = dense.apply(base, scale=0.7), sparse.apply(base, scale=0.7)
        assert all(torch.equal(expected[name], got[name]) for name in base)


def test_applying_it_gives_the_model_and_leaves_the_rest_bitwise(models):
    base, a, _ = models
    tau = ta.SparseTaskVector.between(base, a)
    got = tau.apply(base, scale=-1.0)
    still = ~tau.masks["w"]
    assert torch.equal(got["w"][still], base["w"][still]) and not torch.equal(got["w"], base["w"])
    assert torch.equal(got["still"], base["still"]) and torch.equal(got["n"], base["n"])
    torch.testing.assert_close(tau.apply(base)["w"], a["w"], rtol=1e-6, atol=1e-6)


def test_a_file_holds_a_bit_a_weight_and_the_values(models, tmp_path):
    base, a, _ = models
    tau = ta.SparseTaskVector.between(base, a)
    path = tmp_path / "tau.safetensors"
    tau.save(path)
    loaded = ta.SparseTaskVector.load(path)
    assert loaded.masks == tau.masks and loaded["still"].dtype == torch.bfloat16
    assert all(torch.equal(loaded.values_of(name), tau.values_of(name)) for name in tau)
    assert {"mask/w", "value/w", "value/b"} == set(ta.load_state_dict(path))
    assert tau.nbytes < 0.25 * sum(t.numel() * t.element_size() for t in base.values())


def test_another_file_and_damaged_ones_are_refused(models, tmp_path):
    base, a, b = models
    ta.save_state_dict(base, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected a file written by SparseTaskVector"):
        ta.SparseTaskVector.load(tmp_path / "model.safetensors")
    kind = {"taskarith": "sparse_task_vector", "schema": "1", "shapes": '{"w": [9]}', "dtypes": '{"w": "float32"}'}
    ta.save_state_dict({"value/w": torch.ones(4)}, tmp_path / "short.safetensors", metadata=kind)
    with pytest.raises(CheckpointError, match=r"w: values must have shape \[9\]"):
        ta.SparseTaskVector.load(tmp_path / "short.safetensors")
    tau = ta.SparseTaskVector.between(base, a)
    with pytest.raises(CheckpointError, match="w: base must have shape"):
        tau.apply({"b": base["b"]})
    with pytest.raises(CheckpointError, match="w: finetuned must be"):
        ta.SparseTaskVector.between(base, {**b, "w": torch.ones(2)})
