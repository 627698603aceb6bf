"""What the common table cannot say about fisher_merge: its arguments, and that a scale of F is no matter."""

import pytest
import torch

from taskarith_fast import ops
from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.fisher_merge import OP

BACKENDS = [
    pytest.param(b, marks=pytest.mark.skipif(OP.absent(b) is not None, reason=f"no {b}")) for b in ("reference", "cpu")
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_power_of_two_times_every_fisher_changes_no_bit(backend):
    g = torch.Generator().manual_seed(0)
    theta, fishers = ([[torch.rand(3000, generator=g)] for _ in range(3)] for _ in range(2))
    plain = ops.fisher_merge(theta, fishers, [1, 2, 3], floor=0.0, backend=backend)[0]
    for factor in (2.0**-90, 2.0**90):
        scaled = [[f * factor for f in task] for task in fishers]
        assert torch.equal(ops.fisher_merge(theta, scaled, [1, 2, 3], floor=0.0, backend=backend)[0], plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_and_weights_do_the_same(backend):
    g = torch.Generator().manual_seed(0)
    theta, fishers = ([[torch.rand(3000, generator=g)] for _ in range(2)] for _ in range(2))
    one = ops.fisher_merge(theta, fishers, [1, 1], norms=[2.0, 8.0], floor=0.0, backend=backend)[0]
    assert torch.equal(one, ops.fisher_merge(theta, fishers, [4, 1], floor=0.0, backend=backend)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0]}, r"weights must be 2 finite numbers that are not negative, got \[1.0\]"),
        ({"weights": [1.0, float("nan")]}, "weights must be 2 finite numbers"),
        ({"weights": [0, 0]}, r"weights must not all be 0, got \[0, 0\]"),
        ({"norms": [1.0, 0.0]}, r"norms must be above 0, got \[1.0, 0.0\]"),
        ({"floor": float("inf")}, "floor must be finite and not negative, got inf"),
        ({"floor_rule": "min"}, "floor_rule must be one of max, add; got 'min'"),
        ({"fishers": [[torch.ones(3)]]}, r"fishers must hold 2 lists \(one a task\), got 1"),
        ({"fishers": [[torch.ones(3)], []]}, r"fishers\[1\] must hold 1 tensors like finetuned\[0\], got 0"),
        (
            {"fishers": [[torch.ones(3)], [torch.ones(4)]]},
            r"fishers\[1\]\[0\] must be .* \[3\] on cpu, got .*\[4\]",
        ),
        ({"fishers": [[torch.ones(3)], [torch.ones(3).int()]]}, r"fishers\[1\]\[0\] must be float32.*got torch.int32"),
        ({"finetuned": [[torch.ones(3)], [torch.ones(4)]]}, r"finetuned\[1\]\[0\] must be torch.float32 \[3\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"finetuned": [[torch.ones(3)]] * 2, "fishers": [[torch.ones(3)]] * 2, "weights": [1.0, 1.0]}
    arguments.update(change)
    with pytest.raises(ArgumentError, match=message):
        ops.fisher_merge(**arguments)
    assert ops.fisher_merge([[], []], [[], []], [1.0, 1.0]) == []
