"""Task vectors as values."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import CheckpointError


@pytest.fixture
def models():
    g = torch.Generator().manual_seed(0)
    make = lambda: {"w": torch.randn(3, 4, generator=g), "b": torch.randn(4, generator=g), "n": torch.tensor(2)}  # noqa: E731
    return make(), make(), make()


def test_arithmetic_is_that_of_the_deltas(models):
    base, a, b = models
    tau_a, tau_b = ta.TaskVector.between(base, a), ta.TaskVector.between(base, b)
    assert sorted(tau_a) == ["b", "w"]
    merged = sum([tau_a, tau_b]).apply(base, scale=0.5)
    torch.testing.assert_close(merged["w"], base["w"] + 0.5 * (a["w"] - base["w"] + b["w"] - base["w"]))
    assert torch.equal(merged["n"], base["n"])
    torch.testing.assert_close((-tau_a + 2 * tau_a - tau_b)["w"], a["w"] - b["w"])
    assert tau_a.norm() == pytest.approx(torch.cat([tau_a["w"].flatten(), tau_a["b"]]).norm().item())


def test_saving_and_loading_gives_the_same_bytes(models, tmp_path):
    tau = ta.TaskVector.between(*models[:2])
    tau.save(tmp_path / "tau.safetensors")
    loaded = ta.TaskVector.load(tmp_path / "tau.safetensors")
    assert all(torch.equal(loaded[k], tau[k]) for k in tau)


def test_weights_are_not_taken_for_a_task_vector(models, tmp_path):
    ta.save_state_dict(models[0], tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected a task vector"):
        ta.TaskVector.load(tmp_path / "model.safetensors")


def test_models_that_differ_are_refused(models):
    base, a, _ = models
    with pytest.raises(CheckpointError, match="w: finetuned must be"):
        ta.TaskVector.between(base, {**a, "w": torch.ones(2)})
    with pytest.raises(CheckpointError, match="x is in one model only"):
        ta.TaskVector.between(base, {**a, "x": torch.ones(2)})
    with pytest.raises(CheckpointError, match="w: base must have shape"):
        ta.TaskVector.between(base, a).apply({"b": base["b"]})
