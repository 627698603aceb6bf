"""What the common table cannot say about the sparse steps: rounding at random, equality with torch, refusals."""

import math

import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import Selection, sparse_adamw_step_, sparse_sgd_step_
from taskarith_fast.ops._sparse_step import round_at_random
from taskarith_fast.ops.dare import stream
from taskarith_fast.ops.sparse_adamw_step_ import OP
from tests.ops.case_sparse_adamw_step_ import CASE as ADAMW
from tests.ops.case_sparse_sgd_step_ import CASE as SGD
from tests.ops.sparse_step_samples import SHAPES, Sample

BACKENDS = [
    pytest.param(b, marks=pytest.mark.skipif(OP.absent(b) is not None, reason=f"no {b}"))
    for b in ("reference", "cpu", "cuda_emulated")
]
KERNELS = pytest.mark.parametrize("backend", BACKENDS[1:])
NATIVE = pytest.mark.skipif(OP.absent("cpu") is not None, reason="no cpu")
LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
KEYS = [stream(0, 0, str(i)) for i in range(len(SHAPES))]


@pytest.mark.parametrize("backend", BACKENDS)
@LOW
def test_parameters_are_the_rounded_masters(backend, dtype):
    s = Sample("random", dtype, masters=True).adamw(backend)
    for p, master in zip(s.selected(s.params), s.masters, strict=True):
        assert torch.equal(p.reshape(-1), master.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@LOW
@pytest.mark.parametrize("kind", ["random", "all"])
def test_rounding_at_random_gives_a_neighbour_and_the_same_one_each_time(backend, dtype, kind):
    exact = Sample(kind, dtype, masters=True).adamw("reference").masters
    ours, again = (Sample(kind, dtype).adamw(backend, streams=KEYS) for _ in range(2))
    other = Sample(kind, dtype).adamw(backend, streams=[k + 1 for k in KEYS])
    info = torch.finfo(dtype)
    for p, t in zip(ours.selected(ours.params), exact, strict=True):
        distance = (p.reshape(-1).double() - t.double()).abs()
        assert (distance <= info.eps * t.abs() + info.eps * info.smallest_normal).all()
    assert all(torch.equal(a, b) for a, b in zip(ours.params, again.params, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours.params, other.params, strict=True))


@KERNELS
@LOW
def test_rounding_at_random_is_the_same_in_the_kernel_and_the_reference(backend, dtype):
    ours, eager = (Sample("random", dtype).adamw(b, streams=KEYS) for b in (backend, "reference"))
    differ = sum(int((a != b).sum()) for a, b in zip(ours.params, eager.params, strict=True))
    assert differ <= 0.001 * sum(p.numel() for p in ours.params)  # where a float32 rounding crosses the random number


@KERNELS
@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.7])
def test_entries_close_together_get_the_bits_of_entries_far_apart(backend, dtype, density, masters):
    """What is read together, and in which order, depends on how close the entries are."""
    g = torch.Generator().manual_seed(3)
    size, far = 70_001, 40
    near = torch.rand(size, generator=g) < density
    state = torch.rand(3, int(near.sum()), generator=g)
    values = torch.randn(2, size, generator=g).to(dtype)
    results = []
    for spread in (1, far):
        mask = torch.zeros(size, spread, dtype=torch.bool)
        mask[:, 0] = near
        param, grad = (x[:, None].repeat(1, spread).contiguous() for x in values)
        lists = [[param], [grad], [state[0].clone()], [state[1].clone()], [Selection.of(mask)]]
        master = [state[2].clone()] if masters else []
        sparse_adamw_step_(*lists, lr=1e-2, step=5, masters=master, backend=backend)
        assert torch.equal(param[~mask], values[0][:, None].expand(size, spread)[~mask])
        results.append([param[mask], lists[2][0], lists[3][0], *master])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@NATIVE
@LOW
def test_rounding_at_random_does_not_depend_on_the_number_of_threads(dtype):
    threads, seen = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            seen.append(Sample("rare", dtype).adamw("cpu", streams=KEYS).params)
    finally:
        torch.set_num_threads(threads)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@LOW
@pytest.mark.parametrize("value", [1.003, -0.7701, 3e-6, 12345.6])
def test_rounding_at_random_is_unbiased(dtype, value):
    n = 1 << 16
    x = torch.full((n,), value)
    rounded = round_at_random(x, dtype, stream(1, 0, "w"), 3)
    assert torch.equal(rounded.to(dtype).float(), rounded) and len(rounded.unique()) == 2
    spread = float(rounded.double().std()) / math.sqrt(n)
    assert abs(float(rounded.double().mean()) - float(x[0])) < 5 * spread


@pytest.mark.parametrize("backend", BACKENDS)
@LOW
def test_rounding_at_random_keeps_infinity_nan_and_what_fits(backend, dtype):
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1.0, -1.5, 6.1035e-05]).to(dtype)
    params, none = [special.clone()], [torch.zeros(8, dtype=dtype)]
    sparse_sgd_step_(params, none, [], [Selection.every(special)], lr=0.5, step=1, streams=[5], backend=backend)
    finite = special.isfinite()
    assert torch.equal(params[0][finite], special[finite]) and params[0][:2].isinf().all() | params[0][:2].isnan().all()
    assert params[0][2].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["random", "runs", "all"])
@pytest.mark.parametrize("options", [
    {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.1},
])  # fmt: skip
def test_sgd_is_that_of_torch(backend, kind, options):
    s = Sample(kind, shapes=SHAPES[:3])
    theirs = [torch.nn.Parameter(p.clone()) for p in s.params]
    optimizer = torch.optim.SGD(theirs, lr=0.1, **options)
    before = [p.clone() for p in s.params]
    buffers = [torch.zeros(x.count) for x in s.selections] if "momentum" in options else []
    for step in range(1, 4):
        grads = [g * step for g in s.grads]
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad
        optimizer.step()
        sparse_sgd_step_(s.params, grads, buffers, s.selections, lr=0.1, step=step, backend=backend, **options)
    for p, q, b, mask in zip(s.params, theirs, before, s.masks, strict=True):
        torch.testing.assert_close(p, torch.where(mask, q.data, b), rtol=2e-6, atol=1e-6)
        assert torch.equal(p[~mask], b[~mask])


@KERNELS
@pytest.mark.parametrize("case", [ADAMW, SGD], ids=lambda case: case.op.name)
@pytest.mark.parametrize("harm", ["moment", "gradient", "layout", "length", "steps"])
def test_the_kernel_guards_its_memory(case, harm, backend):
    args = [list(a) if isinstance(a, list) else a for a in case.samples["random"](torch.float32)]
    if harm == "moment":
        args[2][0] = args[2][0][:-1]
    elif harm == "gradient":
        args[1][0] = args[1][0][:-1]
    elif harm == "layout":
        args[0][0] = args[0][0].t()
    elif harm == "length":
        args[2].pop()
    else:
        args[-3] = [torch.tensor(1.0)]
    with pytest.raises(RuntimeError, match=case.op.name):
        case.op.op(*args, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_steps_are_those_of_the_number(backend, dtype):
    options = {"streams": KEYS} if dtype == torch.bfloat16 else {}
    counted = Sample("random", dtype).adamw(backend, step=[torch.tensor([4.0]) for _ in SHAPES], **options)
    numbered = Sample("random", dtype).adamw(backend, step=5, **options)
    assert all(torch.equal(a, b) for a, b in zip(counted.params, numbered.params, strict=True))


def test_what_does_not_fit_is_refused():
    s = Sample("random", shapes=[(9, 5), (7,)])
    lists = [s.params, s.grads, s.exp_avgs, s.exp_avg_sqs, s.selections]
    for change, match in {
        0: "grads must have 1 entries like params, got 2",
        1: "grads must have 2 entries like params, got 1",
        3: "exp_avg_sqs must have 2 entries",
        4: "selections must have 2 entries",
    }.items():
        broken = [x[:1] if i == change else x for i, x in enumerate(lists)]
        with pytest.raises(ArgumentError, match=match):
            sparse_adamw_step_(*broken, lr=0.1, step=1)
    with pytest.raises(ArgumentError, match="step must be 1 or more, got 0"):
        sparse_adamw_step_(*lists, lr=0.1, step=0)
    with pytest.raises(ArgumentError, match="step must have 2 entries like params, got 1"):
        sparse_adamw_step_(*lists, lr=0.1, step=[torch.zeros(1)])
    with pytest.raises(ArgumentError, match="step must be a number, or float32 tensors of one entry"):
        sparse_adamw_step_(*lists, lr=0.1, step=[torch.zeros(1), torch.zeros(2)])
    with pytest.raises(ArgumentError, match=r"exp_avgs\[0\] must be contiguous float32 \["):
        sparse_adamw_step_(*lists[:2], [m.double() for m in s.exp_avgs], *lists[3:], lr=0.1, step=1)
    with pytest.raises(ArgumentError, match=r"grads\[0\] must have 45 or \d+ entries"):
        sparse_adamw_step_(s.params, [g[:2] for g in s.grads], *lists[2:], lr=0.1, step=1)
    with pytest.raises(ArgumentError, match=r"params\[0\] and grads\[0\] must be float32, bfloat16 or float16"):
        sparse_adamw_step_([p.double() for p in s.params], *lists[1:], lr=0.1, step=1)
    with pytest.raises(ArgumentError, match="streams and masters exclude each other"):
        sparse_adamw_step_(*lists, lr=0.1, step=1, masters=s.exp_avgs, streams=[1, 2])
    with pytest.raises(ArgumentError, match="buffers must be given if and only if momentum"):
        sparse_sgd_step_(s.params, s.grads, s.exp_avgs, s.selections, lr=0.1, step=1)
    with pytest.raises(ArgumentError, match="nesterov needs momentum"):
        sparse_sgd_step_(s.params, s.grads, [], s.selections, lr=0.1, step=1, nesterov=True)
