"""Every merging method gives on a GPU what it gives on the processor, in memory and through files."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.merging import METHODS
from tests.merging.stream_cases import make_models, make_statistics, read_output, write_models, write_statistics

SHAPES = [(48, 96), (7,), (3, 5, 16), (96, 33), (0, 4), ()]
PARAMETERS = {"dare+ties": {"seed": 3}, "dare": {"seed": 3}, "cart": {"rank_ratio": 0.2}}


def _assert_near(ours, theirs, base):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if not expected.is_floating_point():
            assert torch.equal(ours[name].cpu(), expected)
            continue
        scale = max(float((expected.double() - base[name].double()).abs().max()), 1e-30) if expected.numel() else 1.0
        torch.testing.assert_close(ours[name].cpu(), expected, rtol=1e-5, atol=1e-5 * scale, msg=name)


def _cuda(model):
    return {name: tensor.cuda() for name, tensor in model.items()}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_in_memory(method):
    base, *finetuned = make_models(SHAPES, 3)
    statistics = make_statistics(method, [base, *finetuned])
    parameters = PARAMETERS.get(method, {})
    expected = ta.merge(base, finetuned, method=method, **parameters, **statistics)
    there = {key: [_cuda(one) for one in tasks] for key, tasks in statistics.items()}
    merged = ta.merge(_cuda(base), [_cuda(f) for f in finetuned], method=method, **parameters, **there)
    assert all(tensor.is_cuda for tensor in merged.values())
    _assert_near(merged, expected, base)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_from_files_to_a_file(method, tmp_path):
    models = make_models(SHAPES, 3, dtypes=("F32", "BF16"))
    base, *finetuned = write_models(models, tmp_path)
    extra = write_statistics(make_statistics(method, models), tmp_path) | PARAMETERS.get(method, {})
    outputs = []
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.safetensors"
        ta.merge_files(base, finetuned, path, method=method, device=device, dtype=torch.float32, **extra)
        outputs.append(read_output(path))
    _assert_near(outputs[1], outputs[0], models[0])
