import pytest
import torch

from taskarith_fast.analysis import cosine, cosine_map
from taskarith_fast.errors import CheckpointError


def _models(tasks, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = {"a": (7, 5), "b": (11,), "scalar": (), "empty": (0, 3)}
    base = {k: torch.randn(s, dtype=dtype) for k, s in shapes.items()} | {"steps": torch.tensor([3])}
    states = [{k: v + torch.randn(v.shape).to(v.dtype) for k, v in base.items()} for _ in range(tasks)]
    return base, states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_cosines_of_the_flattened_differences(dtype, monkeypatch):
    monkeypatch.setattr(cosine, "_BLOCK", 4)
    base, states = _models(4, dtype)
    names = ["a", "b", "scalar", "empty"]
    flat = torch.stack([torch.cat([(s[k].double() - base[k].double()).flatten() for k in names]) for s in states])
    flat = flat / flat.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine_map(base, states), flat @ flat.T, rtol=0, atol=1e-14)


def test_is_symmetric_with_a_unit_diagonal():
    matrix = cosine_map(*_models(5))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(5, dtype=torch.float64))


def test_opposite_edits_have_cosine_minus_one():
    base, (state, _) = _models(2)
    opposite = {k: 2 * base[k] - v for k, v in state.items()}
    assert cosine_map(base, [state, opposite])[0, 1] == pytest.approx(-1, abs=1e-6)


def test_a_zero_task_vector_has_a_zero_row():
    base, states = _models(2)
    matrix = cosine_map(base, [*states, base])
    assert matrix[2].tolist() == [0, 0, 0]
    assert matrix[0, 0] == 1


def test_no_models_give_an_empty_map():
    assert cosine_map(_models(0)[0], []).shape == (0, 0)


def test_names_a_missing_tensor():
    base, states = _models(2)
    del states[1]["b"]
    with pytest.raises(CheckpointError, match=r"finetuned\[1\] lacks the tensor 'b'"):
        cosine_map(base, states)


def test_names_a_tensor_of_another_shape():
    base, states = _models(2)
    states[0]["a"] = torch.zeros(5, 7)
    with pytest.raises(CheckpointError, match=r"finetuned\[0\]\['a'\] must have shape \[7, 5\].*got \[5, 7\]"):
        cosine_map(base, states)
