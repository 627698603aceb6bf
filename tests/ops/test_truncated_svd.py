"""What the table of cases does not say: excess over the optimum at the sizes of a ViT, scales, errors,
determinism."""

import pytest
import torch

from benchmarks.spectra import SPECTRA, matrix
from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.truncated_svd import OP, truncated_svd, truncated_svd_composed
from tests.ops.case_truncated_svd import CASE


@pytest.fixture(autouse=True)
def one_thread():
    """LAPACK's threads wait for one another where others use the processor; these matrices are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _excess(d, rank, svd):
    """||D - D_r|| / optimum - 1, and the bound that the op gives."""
    u, s, vh, bound = OP(d[None], rank, svd)
    values = torch.linalg.svdvals(d.double())
    optimum = values[rank:].norm()
    residual = (d.double() - (u[0].double() * s[0].double()) @ vh[0].double()).norm()
    torch.testing.assert_close(s[0].double(), values[:rank], rtol=0, atol=2e-6 * float(values[0]))
    return float(residual / optimum - 1), float(bound[0])


@pytest.mark.parametrize("svd", ["certified", "exact"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(384, 384), (768, 384), (256, 1024), (385, 259)], ids=str)
def test_excess_over_the_optimum_is_below_1e5(shape, spectrum, svd):
    excess, _ = _excess(matrix(spectrum, *shape), 31, svd)
    assert -1e-9 < excess < (1e-5 if svd == "certified" else 1e-7)


def test_excess_at_the_size_of_a_vit_b32_matrix():
    excess, _ = _excess(matrix("spiked", 768, 3072), 61, "certified")
    assert excess < 1e-5


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_bound_covers_the_excess_and_keeps_the_promise(spectrum):
    for seed in range(3):
        excess, bound = _excess(matrix(spectrum, 300, 200, seed), 20, "certified")
        assert bound <= 1e-5
        assert excess <= max(bound, 1e-7)  # 0 where float64 was used: then factors in float32 are the limit


@pytest.mark.parametrize("exponent", [1, 2, 3, 4])
def test_power_laws_are_certified_or_redone(exponent):
    u, v = (torch.linalg.qr(torch.randn(n, 200, dtype=torch.float64)).Q for n in (260, 200))
    d = ((u * torch.arange(1, 201).double() ** -exponent) @ v.mT).float()
    excess, bound = _excess(d, 20, "certified")
    assert excess < 1e-5 and bound <= 1e-5


def test_repeated_values_at_the_cut_reach_the_optimum():
    q = torch.linalg.qr(torch.randn(150, 150, dtype=torch.float64)).Q
    values = torch.cat([torch.full((10,), 2.0), torch.full((140,), 1.0)]).double()
    d = ((q * values) @ torch.linalg.qr(torch.randn(150, 150, dtype=torch.float64)).Q).float()
    for svd in ("certified", "exact"):
        assert _excess(d, 40, svd)[0] < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scale_changes_nothing_but_the_values(scale):
    d = matrix("spiked", 150, 90) * 1e3
    u, s, vh = truncated_svd(d.double().mul(scale).float(), 7)
    u1, s1, vh1 = truncated_svd(d, 7)
    torch.testing.assert_close(s / scale, s1, rtol=1e-5, atol=0)
    torch.testing.assert_close((u * (s / scale)) @ vh, (u1 * s1) @ vh1, rtol=0, atol=1e-3 * float(d.abs().max()))


def test_rank_deficient_matrices_have_zero_values_and_orthonormal_vectors():
    d = torch.randn(120, 5) @ torch.randn(5, 100)
    u, s, vh = (x.double() for x in truncated_svd(d, 12))
    assert s[5:].max() < 1e-6 * s[0]
    eye = torch.eye(12, dtype=torch.float64)
    assert (u.T @ u - eye).abs().max() < 1e-5 and (vh @ vh.T - eye).abs().max() < 1e-5
    zero_u, zero_s, zero_vh = truncated_svd(torch.zeros(90, 70), 70)
    assert not zero_s.any()
    torch.testing.assert_close(zero_u.T @ zero_u, torch.eye(70))
    torch.testing.assert_close(zero_vh @ zero_vh.T, torch.eye(70))


def test_one_matrix_equals_its_place_in_a_batch():
    batch = torch.stack([matrix("flat", 90, 130, seed) for seed in range(5)])
    together = truncated_svd(batch, 8)
    for i, d in enumerate(batch):
        for one, all_ in zip(truncated_svd(d, 8), together, strict=True):
            assert torch.equal(one, all_[i])


def test_bad_input_is_named():
    d = torch.randn(6, 4)
    with pytest.raises(ArgumentError, match=r"rank must be in \[1, 4\] for a matrix \[6, 4\], got 5"):
        truncated_svd(d, 5)
    with pytest.raises(ArgumentError, match="rank must be in"):
        truncated_svd(d, 0)
    with pytest.raises(ArgumentError, match="svd must be one of certified, exact; got 'fast'"):
        truncated_svd(d, 1, svd="fast")
    with pytest.raises(ArgumentError, match=r"matrices must have shape \[L, m, n\] or \[m, n\], got \[3\]"):
        truncated_svd(torch.ones(3), 1)
    with pytest.raises(ArgumentError, match="matrices must be float32"):
        truncated_svd(d.double(), 1)
    with pytest.raises(ArgumentError, match="truncated_svd is not differentiable"):
        truncated_svd(d.requires_grad_(), 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(6, 4), (90, 80)])
def test_values_that_are_not_finite_are_refused(value, shape):
    d = torch.randn(shape)
    d[1, 2] = value
    with pytest.raises(RuntimeError):
        truncated_svd(d, 2)


@pytest.mark.parametrize("sample", CASE.samples)
def test_the_composition_for_gpus_is_right_on_any_device(sample):
    args = CASE.samples[sample](torch.float32)
    CASE.compare(args, truncated_svd_composed(*args), CASE.op.reference(*args), CASE.truth(*args))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_composition_for_gpus_refuses_values_that_are_not_finite(value):
    with pytest.raises(RuntimeError):
        truncated_svd_composed(torch.full((1, 6, 4), value), 2, "exact")
