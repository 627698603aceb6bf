import pytest
import torch

from benchmarks.spectra import matrix
from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.lowrank_sum import lowrank_sum, lowrank_sum_composed
from taskarith_fast.ops.truncated_svd import truncated_svd
from tests.ops.case_lowrank_sum import CASE


@pytest.mark.parametrize("svd", ["certified", "exact"])
def test_equals_the_sum_of_truncated_products(svd):
    base = torch.randn(150, 200)
    models = [base + matrix("spiked", 150, 200, seed) for seed in range(4)]
    total = lowrank_sum([base], [[m] for m in models], 12, svd=svd)[0]
    u, s, vh = truncated_svd(torch.stack(models) - base, 12, svd=svd)
    torch.testing.assert_close(total, ((u * s[:, None]) @ vh).sum(0), rtol=0, atol=1e-7)


def test_a_rank_for_each_matrix():
    base = [torch.zeros(80, 90), torch.zeros(90, 70)]
    model = [torch.randn(80, 90), torch.randn(90, 70)]
    for out, rank in zip(lowrank_sum(base, [model], [3, 8]), (3, 8), strict=True):
        assert int(torch.linalg.matrix_rank(out)) == rank


def test_full_rank_gives_the_sum_of_deltas():
    base, models = torch.randn(40, 30), torch.randn(3, 40, 30)
    out = lowrank_sum([base], [[m] for m in models], 30)[0]
    torch.testing.assert_close(out, (models - base).sum(0), rtol=0, atol=1e-5)


def test_bad_input_is_named():
    base, model = [torch.randn(6, 4)], [torch.randn(6, 4)]
    with pytest.raises(ArgumentError, match=r"rank\[0\] must be in \[1, 4\] for a matrix \[6, 4\], got 0"):
        lowrank_sum(base, [model], 0)
    with pytest.raises(ArgumentError, match=r"rank must be one number or 1 \(one a matrix\), got 2"):
        lowrank_sum(base, [model], [1, 2])
    with pytest.raises(ArgumentError, match=r"finetuned\[1\] must hold 1 matrices like base, got 0"):
        lowrank_sum(base, [model, []], 1)
    with pytest.raises(
        ArgumentError, match=r"finetuned\[0\]\[0\] must be torch.float32 \[6, 4\] on cpu like base, got"
    ):
        lowrank_sum(base, [[torch.randn(4, 6)]], 1)
    with pytest.raises(ArgumentError, match=r"base\[0\] must be a float32, bfloat16 or float16 matrix"):
        lowrank_sum([torch.randn(6)], [], 1)
    with pytest.raises(ArgumentError, match="lowrank_sum is not differentiable"):
        lowrank_sum(base, [[model[0].clone().requires_grad_()]], 1)
    with pytest.raises(RuntimeError):
        lowrank_sum(base, [[torch.full((6, 4), torch.nan)]], 1)


@pytest.mark.parametrize("dtype", CASE.dtypes)
@pytest.mark.parametrize("sample", CASE.samples)
def test_the_composition_for_gpus_is_right_on_any_device(sample, dtype):
    args = CASE.samples[sample](dtype)
    out = lowrank_sum_composed(*args)
    assert all(o.is_contiguous() and o.dtype == dtype for o in out)
    CASE.compare(args, out, CASE.op.reference(*args), CASE.truth(*args))
