"""What the public functions of per-sample and compact gradients accept, and what they mean."""

import pytest
import torch
import torch.nn.functional as F

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import (
    Selection,
    fisher_diag_,
    fisher_diag_elementwise_,
    masked_wgrad,
    masked_wgrad_,
    masked_wgrad_adamw_step_,
    pack_bits,
    row_starts,
    sparse_adamw_step_,
)
from taskarith_fast.ops.masked_wgrad_ import OP


def test_fisher_is_the_sum_of_squared_per_sample_gradients_of_autograd():
    x = torch.randn(4, 6, 5)
    scale, shift = torch.ones(5, requires_grad=True), torch.zeros(5, requires_grad=True)
    weight, bias = torch.randn(7, 5, requires_grad=True), torch.zeros(7, requires_grad=True)
    parameters = [weight, bias, scale, shift]
    expected = [torch.zeros_like(p) for p in parameters]
    captured = []
    for sample in x:
        normed = F.layer_norm(sample, (5,), scale, shift)
        y = F.linear(normed, weight, bias)
        gradients = torch.autograd.grad(y.square().sum(), [*parameters, y, normed])
        for total, gradient in zip(expected, gradients, strict=False):
            total += gradient.square() / 4
        captured.append((normed.detach(), *gradients[4:]))
    normed, grad_y, grad_normed = (torch.stack(t) for t in zip(*captured, strict=True))
    found = [
        fisher_diag_(torch.zeros(7, 5), normed, grad_y, scale=1 / 4),
        fisher_diag_elementwise_(torch.zeros(7), grad_y, scale=1 / 4),
        fisher_diag_elementwise_(torch.zeros(5), grad_normed, F.layer_norm(x, (5,)), scale=1 / 4),
        fisher_diag_elementwise_(torch.zeros(5), grad_normed, scale=1 / 4),
    ]
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)


def test_fisher_is_not_the_square_of_the_batchs_gradient():
    x, grad_y = torch.ones(2, 1, 1), torch.tensor([1.0, -1.0]).view(2, 1, 1)
    assert fisher_diag_(torch.zeros(1, 1), x, grad_y).item() == 2


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_does_not_lower_the_precision(backend):
    x, grad_y = torch.randn(2, 3, 10), torch.randn(2, 3, 6)
    _, bits, starts = _packed()
    runs = (
        lambda: fisher_diag_(torch.zeros(6, 10), x, grad_y, backend=backend),
        lambda: masked_wgrad(x, grad_y, bits, starts, backend=backend),
    )
    for run in runs:
        plain = run()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(run(), plain)


@pytest.mark.parametrize("tokens", [(), (6,), (2, 3)])
def test_the_dimensions_between_are_a_samples_tokens(tokens):
    x, grad_y = torch.randn(3, *tokens, 8), torch.randn(3, *tokens, 4)
    flat = x.reshape(3, -1, 8), grad_y.reshape(3, -1, 4)
    gradients = torch.einsum("bsk,bso->bok", *flat).square().sum(0)
    torch.testing.assert_close(fisher_diag_(torch.zeros(4, 8), x, grad_y), gradients)
    convolution = fisher_diag_(torch.zeros(4, 2, 2, 2), x, grad_y)
    torch.testing.assert_close(convolution, gradients.view(4, 2, 2, 2))


def test_an_elementwise_parameter_takes_the_last_dimensions_and_sums_the_others():
    grad_y = torch.randn(3, 5, 4)
    bias = fisher_diag_elementwise_(torch.zeros(4), grad_y)
    torch.testing.assert_close(bias, grad_y.sum(1).square().sum(0))
    positions = fisher_diag_elementwise_(torch.zeros(5, 4), grad_y)
    torch.testing.assert_close(positions, grad_y.square().sum(0))
    single = fisher_diag_elementwise_(torch.zeros(()), grad_y)
    torch.testing.assert_close(single, grad_y.sum((1, 2)).square().sum(0))


def _packed(o=6, k=10, density=0.5):
    mask = torch.rand(o, k) < density
    bits = pack_bits([mask])[0]
    return mask, bits, row_starts(bits, (o, k))


def test_row_starts_count_the_selected_entries_before_each_row():
    mask, bits, starts = _packed()
    assert starts.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert row_starts(bits, (6, 5, 2)).tolist() == starts.tolist()


def test_selected_gradients_come_in_row_major_order_and_add_up():
    mask, bits, starts = _packed()
    x, grad_y = torch.randn(3, 4, 10), torch.randn(3, 4, 6)
    truth = torch.einsum("bsk,bso->ok", x, grad_y)[mask]
    values = masked_wgrad(x, grad_y, bits, starts)
    torch.testing.assert_close(values, truth)
    assert masked_wgrad_(values, x, grad_y, bits, starts) is values
    torch.testing.assert_close(values, 2 * truth)


def test_fisher_arguments_that_do_not_fit_are_refused():
    x, grad_y = torch.ones(2, 3, 8), torch.ones(2, 3, 4)
    for fisher in (torch.zeros(8, 4), torch.zeros(4, 8).double(), torch.zeros(4, 7)):
        with pytest.raises(ArgumentError, match=r"fisher must be float32 with o=4 rows of k=8 entries, got"):
            fisher_diag_(fisher, x, grad_y)
    with pytest.raises(ArgumentError, match=r"fisher must be contiguous, got strides \[1, 4\]"):
        fisher_diag_(torch.zeros(8, 4).t(), x, grad_y)
    with pytest.raises(
        ArgumentError, match=r"grad_y must have x's dimensions before the last one, \[2, 3\], got \[2\]"
    ):
        fisher_diag_(torch.zeros(4, 8), x, grad_y[:, 0])
    with pytest.raises(ArgumentError, match="x must be float32, bfloat16 or float16 of at least 2 dimensions"):
        fisher_diag_(torch.zeros(4, 8), x.double(), grad_y)
    with pytest.raises(ArgumentError, match=r"grad_y must have shape \[B, ..., 5\], got \[2, 3, 4\]"):
        fisher_diag_elementwise_(torch.zeros(5), grad_y)
    with pytest.raises(ArgumentError, match=r"x must have grad_y's shape \[2, 3, 4\], got \[2, 3, 8\]"):
        fisher_diag_elementwise_(torch.zeros(4), grad_y, x)
    with pytest.raises(ArgumentError, match=r"fisher must be float32, got torch\.float64"):
        fisher_diag_elementwise_(torch.zeros(4).double(), grad_y)


def test_masked_gradient_arguments_that_do_not_fit_are_refused():
    x, grad_y = torch.ones(3, 10), torch.ones(3, 6)
    _, bits, starts = _packed()
    with pytest.raises(ArgumentError, match=r"row_starts must be int64 of shape \[o \+ 1 = 7\], got torch.int64 \[6\]"):
        masked_wgrad(x, grad_y, bits, starts[1:])
    with pytest.raises(ArgumentError, match=r"bits\[0\] must be uint8 \[8\] for 60 entries, got torch.uint8 \[7\]"):
        masked_wgrad(x, grad_y, bits[1:], starts)
    with pytest.raises(ArgumentError, match=r"values must be float32 of shape \[count\], got torch.float64"):
        masked_wgrad_(torch.zeros(int(starts[-1])).double(), x, grad_y, bits, starts)


@pytest.mark.skipif(OP.absent("cpu") is not None, reason="the native library is absent")
def test_row_starts_of_another_mask_write_nowhere():
    x, grad_y = torch.ones(3, 10), torch.ones(3, 6)
    _, bits, starts = _packed()
    values, other = torch.zeros(int(starts[-1])), bits.clone()
    other[0] ^= 1
    with pytest.raises(RuntimeError, match="row_starts does not belong to mask, row 0"):
        masked_wgrad_(values, x, grad_y, other, starts, backend="cpu")
    with pytest.raises(RuntimeError, match="row_starts must end with"):
        masked_wgrad_(values[1:].clone(), x, grad_y, bits, starts, backend="cpu")
    assert not values.any()


def test_the_fused_step_is_the_gradient_then_the_sparse_step():
    mask, bits, starts = _packed()
    x, grad_y, count = torch.randn(3, 4, 10), torch.randn(3, 4, 6), int(starts[-1])
    fused = [torch.randn(6, 10), torch.randn(count), torch.rand(count)]
    apart = [t.clone() for t in fused]
    masked_wgrad_adamw_step_(*fused, x, grad_y, bits, starts, lr=0.1, step=3)
    grad = masked_wgrad(x, grad_y, bits, starts)
    sparse_adamw_step_(*([t] for t in (apart[0], grad, *apart[1:])), [Selection.of(mask)], lr=0.1, step=3)
    for ours, theirs in zip(fused, apart, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(fused[0][~mask], apart[0][~mask])


def test_arguments_of_the_fused_step_that_do_not_fit_are_refused():
    x, grad_y = torch.ones(3, 10), torch.ones(3, 6)
    _, bits, starts = _packed()
    weight, moment = torch.zeros(6, 10), torch.zeros(int(starts[-1]))

    def step(weight=weight, v=moment, **options):
        masked_wgrad_adamw_step_(weight, moment, v, x, grad_y, bits, starts, **{"lr": 0.1, "step": 1, **options})

    with pytest.raises(ArgumentError, match=r"param must be float32, .* o=6 rows of k=10 entries, got .* \[10, 6\]"):
        step(weight.t())
    with pytest.raises(ArgumentError, match=r"exp_avg_sq must be float32 of shape \[count\], got torch.float64"):
        step(v=moment.double())
    with pytest.raises(ArgumentError, match=r"master must be float32 of shape \[count\], got torch.float32 \[6, 10\]"):
        step(master=weight)
    with pytest.raises(ArgumentError, match="step must be 1 or more, got 0"):
        step(step=0)
