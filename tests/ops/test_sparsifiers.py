"""What the common table cannot say about dare, breadcrumbs, the masks and the gradient of weighted_sum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskarith_fast import ops
from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.breadcrumbs import OP as BREADCRUMBS
from taskarith_fast.ops.dare import keep_mask, philox, stream
from tests.ops.case_breadcrumbs import ranked

BACKENDS = [
    pytest.param(b, marks=pytest.mark.skipif(BREADCRUMBS.absent(b) is not None, reason=f"no {b}"))
    for b in ("reference", "cpu")
]
MAGNITUDES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 1e-40, -1e-40, 3e38, float("inf"), -float("inf")])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(values=st.lists(MAGNITUDES, min_size=1, max_size=200), data=st.data())
def test_breadcrumbs_breaks_adversarial_ties_by_position(backend, values, data):
    n = len(values)
    removed = data.draw(st.integers(0, n))
    kept = data.draw(st.integers(0, n - removed))
    row = torch.tensor(values)
    finite = torch.where(row.isinf(), row.sign() * 3.4e38, row)
    out = ops.breadcrumbs([torch.zeros(n)], [[finite]], [1.0], [removed], [kept], backend=backend)[0]
    expected = torch.zeros(n)
    for j in ranked(finite.abs().tolist(), removed, kept):
        expected[j] = finite[j]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 31, 33, 768, 4097, 2**17 + 1])
def test_breadcrumbs_keeps_exactly_k(backend, n):
    delta = torch.randint(1, 50, (2, n), generator=torch.Generator().manual_seed(n)).float()
    removed, kept = n // 10, n // 5 + 1 if n < 5 else n // 5
    kept = min(kept, n - removed)
    out = ops.breadcrumbs([torch.zeros(2, n)], [[delta]], [1.0], [removed], [kept], backend=backend)[0]
    assert out.count_nonzero(dim=1).tolist() == [kept] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_breadcrumbs_ranks_nan_above_infinity(backend):
    delta = torch.tensor([1.0, float("nan"), 2.0, float("inf"), 0.5])
    out = ops.breadcrumbs([torch.zeros(5)], [[delta]], [1.0], [2], [2], backend=backend)[0]
    assert out.tolist() == [1.0, 0.0, 2.0, 0.0, 0.0]


def test_philox_gives_the_published_numbers():
    """Known answers of the Random123 distribution, philox4x32-10, counter and key zero."""
    assert [hex(w) for w in philox(torch.tensor([0]), 0, 0)[0].tolist()] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]


def test_dare_keeps_the_asked_fraction_without_correlation_between_neighbours():
    numel, density = 1 << 18, 0.1
    kept = keep_mask(numel, stream(0, 0, "x"), round(density * 2**32)).double()
    spread = (density * (1 - density) / numel) ** 0.5
    assert abs(kept.mean() - density) < 5 * spread
    for lag in (1, 2, 4, 8, 32, 64, 512):
        product = ((kept[lag:] - density) * (kept[:-lag] - density)).mean() / (density * (1 - density))
        assert abs(product) < 5 / numel**0.5
    other = keep_mask(numel, stream(0, 1, "x"), round(density * 2**32)).double()
    assert abs(((kept - density) * (other - density)).mean()) / (density * (1 - density)) < 5 / numel**0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_dare_masks_do_not_depend_on_the_shape_or_the_other_tensors(backend):
    x, y = torch.zeros(40, 50), torch.ones(40, 50)
    keys = [stream(1, 0, name) for name in ("x", "y")]
    both = ops.dare([x, x], [[y, y]], [1.0], [keys], density=0.5, backend=backend)
    flat = ops.dare([x.flatten()], [[y.flatten()]], [1.0], [keys[1:]], density=0.5, backend=backend)
    assert torch.equal(both[1].flatten(), flat[0]) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dare_of_pieces_is_dare_of_the_whole(backend):
    x, y = torch.zeros(1000), torch.ones(1000)
    key = [stream(1, 0, "x")]
    whole = ops.dare([x], [[y]], [1.0], [key], density=0.5, backend=backend)[0]
    starts = [0, 64, 320, 960]
    parts = [[v[a:b] for a, b in zip(starts, [*starts[1:], 1000], strict=True)] for v in (x, y)]
    pieces = ops.dare(parts[0], [parts[1]], [1.0], [key * 4], density=0.5, begins=starts, backend=backend)
    assert torch.equal(torch.cat(pieces), whole)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), numel=st.integers(0, 300), tasks=st.integers(1, 20), threshold=st.integers(0, 21))
def test_consensus_counts_votes_of_any_number_of_tasks(data, numel, tasks, threshold):
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    finetuned = [[torch.randint(-2, 3, (numel,), generator=g).float()] for _ in range(tasks)]
    lambdas = torch.rand(tasks, generator=g, dtype=torch.float64)
    merged = ops.consensus([torch.zeros(numel)], finetuned, lambdas, threshold=threshold)[0]
    deltas = np.stack([f[0].double().numpy() for f in finetuned])
    votes = (np.abs(deltas) > lambdas.numpy()[:, None] * np.abs(deltas.sum(0) - deltas)).sum(0)
    assert np.array_equal(merged.double().numpy(), (votes >= threshold) * deltas.sum(0))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=300))
def test_bits_survive_packing(flags):
    mask = torch.tensor(flags, dtype=torch.bool)
    packed = ops.pack_bits([mask])
    assert np.array_equal(packed[0].numpy(), np.packbits(mask.numpy(), bitorder="little"))
    assert torch.equal(ops.unpack_bits(packed, [mask.shape])[0], mask)
    on, off = torch.ones(len(flags)), torch.zeros(len(flags))
    assert torch.equal(ops.where_bits(packed, [on], [off])[0], mask.float())


def test_the_gradient_of_weighted_sum_is_the_one_pass_operator():
    g = torch.Generator().manual_seed(0)
    base = [torch.randn(30, 7, generator=g), torch.randn(5, generator=g)]
    finetuned = [[b + torch.randn(b.shape, generator=g) for b in base] for _ in range(3)]
    weights = torch.full((3, 2), 0.3, requires_grad=True, dtype=torch.float64)
    merged = ops.weighted_sum(base, finetuned, weights)
    merged[0].square().sum().backward()  # the second output takes no part
    grads = [2 * merged[0].detach(), torch.zeros(5)]
    assert torch.equal(weights.grad, ops.weighted_sum_backward(grads, base, finetuned))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.dare([x], [[x]], [1.0], [[1]], density=0.0), r"density must be in \(0, 1\], got 0.0"),
        (lambda x: ops.dare([x], [[x]], [1.0], [[1, 2]], density=0.5), "streams must be 1 lists of 1 keys"),
        (lambda x: ops.dare([x], [[x]], [1.0], [[1]], density=0.5, begins=[32]), "begins must be 1 multiples of 64"),
        (lambda x: ops.dare([x], [[x]], [1.0, 2.0], [[1]], density=0.5), r"weights must have shape \[T=1\]"),
        (
            lambda x: ops.breadcrumbs([x], [[x]], [1.0], [2], [2]),
            r"removed\[0\] \+ kept\[0\] must be in \[0, 3\]",
        ),
        (lambda x: ops.breadcrumbs([x], [[x]], [1.0], [], []), "removed and kept must hold 1 counts"),
        (lambda x: ops.tall_mask([x], [[x]], [-1.0]), "lambdas must be finite and not negative"),
        (lambda x: ops.tall_mask([x], [[x]], [1.0, 1.0]), r"lambdas must have shape \[T=1\], got \[2\]"),
        (lambda x: ops.tall_mask([x], [[x.double()]], [1.0]), r"finetuned\[0\]\[0\] must be torch.float32"),
        (
            lambda x: ops.consensus([x], [[x]], [1.0], threshold=-1),
            "threshold must be a whole number of tasks",
        ),
        (lambda x: ops.consensus([x], [[x]], [1.0], threshold=1, scale=float("nan")), "scale must be finite"),
        (lambda x: ops.pack_bits([x]), r"masks\[0\] must be bool, got torch.float32"),
        (lambda x: ops.unpack_bits([x], [(3,)]), r"bits\[0\] must be uint8 \[1\] for 3 entries"),
        (lambda x: ops.where_bits([], [x], [x]), "bits must hold 1 packed masks, got 0"),
        (
            lambda x: ops.weighted_sum_backward([x, x], [x], [[x]]),
            "grads must hold 1 tensors like base, got 2",
        ),
    ],
)
def test_bad_arguments_cost_one_line(call, message):
    with pytest.raises(ArgumentError, match=message) as error:
        call(torch.zeros(3))
    assert "\n" not in str(error.value)
