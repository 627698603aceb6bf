"""sparse_adamw_step_ and sparse_sgd_step_: every form of selection and gradient against a float64 truth and torch."""

import math

import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import Selection, sparse_adamw_step_, sparse_sgd_step_
from taskarith_fast.ops._sparse_step import round_at_random
from taskarith_fast.ops.dare import stream
from taskarith_fast.ops.sparse_adamw_step_ import OP
from taskarith_fast.ops.sparse_sgd_step_ import OP as SGD
from tests.ops.cases import DTYPES, assert_within_budget, generator

BACKENDS = [
    pytest.param(b, marks=pytest.mark.skipif(OP.absent(b) is not None, reason=f"no {b}")) for b in ("reference", "cpu")
]
SHAPES = [(33, 31), (7,), (1, 4097), (70_001,), ()]
MASKS = {
    "random": lambda s, g: torch.rand(s, generator=g) < 0.3,
    "rare": lambda s, g: torch.rand(s, generator=g) < 0.01,
    "runs": lambda s, g: torch.arange(math.prod(s)).reshape(s) % 97 < 40,
    "nearly all": lambda s, g: torch.rand(s, generator=g) < 0.99,
    "all": lambda s, g: torch.ones(s, dtype=torch.bool),
    "none": lambda s, g: torch.zeros(s, dtype=torch.bool),
}
ADAMW = dict(lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)


class Sample:
    """Parameters, gradients and states in the middle of a run; the same ones at each call."""

    def __init__(self, kind, dtype=torch.float32, shapes=SHAPES, compact=False, masters=False):
        g = generator(1)
        self.masks = [MASKS[kind](s, g) for s in shapes]
        self.params = [torch.randn(s, generator=g).to(dtype) for s in shapes]
        dense = [torch.randn(s, generator=g).to(dtype) for s in shapes]
        self.grads = [x[m] for x, m in zip(dense, self.masks, strict=True)] if compact else dense
        self.selections = [Selection.of(m) for m in self.masks]
        counts = [s.count for s in self.selections]
        self.exp_avgs = [0.1 * torch.randn(n, generator=g) for n in counts]
        self.exp_avg_sqs = [torch.rand(n, generator=g) for n in counts]
        self.masters = [p[m].float() for p, m in zip(self.params, self.masks, strict=True)] if masters else []

    def selected(self, tensors):
        return [t[m] for t, m in zip(tensors, self.masks, strict=True)]

    def step(self, backend, step=5, **options):
        sparse_adamw_step_(
            self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.selections,
            step=step, masters=self.masters, backend=backend, **{**ADAMW, **options},
        )  # fmt: skip
        return self

    def truth(self, step=5, factor=1.0):
        """Selected parameters, m and v after the step, in float64 by the paper's formula."""
        lr, (b1, b2), eps, wd = ADAMW["lr"], ADAMW["betas"], ADAMW["eps"], ADAMW["weight_decay"]
        out = []
        for i, mask in enumerate(self.masks):
            g = self.grads[i] if self.grads[i].shape != mask.shape or not mask.dim() else self.grads[i][mask]
            g, p = g.reshape(-1)[: mask.sum()].double() * factor, self.params[i][mask].double()
            m = b1 * self.exp_avgs[i].double() + (1 - b1) * g
            v = b2 * self.exp_avg_sqs[i].double() + (1 - b2) * g * g
            p = p * (1 - lr * wd) - lr / (1 - b1**step) * m / ((v / (1 - b2**step)).sqrt() + eps)
            out.append((p, m, v))
        return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_adamw_is_within_the_error_budget_and_spares_the_rest(backend, dtype, kind, compact):
    before, ours, eager = (Sample(kind, dtype, compact=compact) for _ in range(3))
    truth = before.truth()
    ours.step(backend)
    eager.step("reference")
    assert_within_budget(ours.exp_avgs, eager.exp_avgs, [t[1] for t in truth])
    assert_within_budget(ours.exp_avg_sqs, eager.exp_avg_sqs, [t[2] for t in truth])
    for i, mask in enumerate(ours.masks):
        p, e, old = ours.params[i], eager.params[i], before.params[i]
        exact, start = truth[i][0], old[mask].double()
        # Two float32 terms are added, so the roundings are those of the larger: old parameter or step.
        terms = torch.finfo(torch.float32).eps * (start.abs() + (exact - start).abs())
        allowed = (exact - e[mask].double()).abs() + torch.finfo(dtype).eps * exact.abs() + terms
        assert ((exact - p[mask].double()).abs() <= allowed).all()
        assert torch.equal(p[~mask].view(torch.uint8), old[~mask].view(torch.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_scaling_and_sign_multiply_the_gradient(backend):
    scalars = {"clip": torch.tensor(0.25), "grad_scale": torch.tensor([8.0]), "found_inf": torch.tensor(0.0)}
    truth = Sample("random").truth(factor=-0.25 / 8)
    ours = Sample("random").step(backend, maximize=True, **scalars)
    for p, t in zip(ours.selected(ours.params), truth, strict=True):
        torch.testing.assert_close(p.double(), t[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_found_inf_leaves_everything_as_it_is(backend):
    before, ours = Sample("random"), Sample("random")
    ours.grads[0][:] = torch.nan
    ours.step(backend, found_inf=torch.tensor([2.0]))
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(ours, name), getattr(before, name), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_masters_are_updated_and_copied(backend, dtype):
    ours, exact = Sample("random", dtype, masters=True), Sample("random", dtype, masters=True).truth()
    ours.step(backend)
    for p, master, t in zip(ours.selected(ours.params), ours.masters, exact, strict=True):
        torch.testing.assert_close(master.double(), t[0], rtol=1e-6, atol=1e-7)
        assert torch.equal(p.reshape(-1), master.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("kind", ["random", "all"])
def test_random_rounding_gives_a_neighbour_and_the_same_one_each_time(backend, dtype, kind):
    keys = [stream(0, 0, str(i)) for i in range(len(SHAPES))]
    truth = Sample(kind, dtype).truth()
    ours = Sample(kind, dtype).step(backend, streams=keys)
    again = Sample(kind, dtype).step(backend, streams=keys)
    other = Sample(kind, dtype).step(backend, streams=[k + 1 for k in keys])
    info = torch.finfo(dtype)
    for p, t in zip(ours.selected(ours.params), truth, strict=True):
        assert ((p.reshape(-1).double() - t[0]).abs() <= info.eps * t[0].abs() + info.eps * info.smallest_normal).all()
    assert all(torch.equal(a, b) for a, b in zip(ours.params, again.params, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours.params, other.params, strict=True))


@pytest.mark.skipif(OP.absent("cpu") is not None, reason="no cpu")
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_random_rounding_of_the_kernel_is_that_of_the_reference(dtype):
    keys = [stream(0, 0, str(i)) for i in range(len(SHAPES))]
    ours, eager = (Sample("random", dtype).step(b, streams=keys) for b in ("cpu", "reference"))
    differ = sum(int((a != b).sum()) for a, b in zip(ours.params, eager.params, strict=True))
    assert differ <= 0.001 * sum(p.numel() for p in ours.params)  # where a float32 rounding crosses the random number


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("value", [1.003, -0.7701, 3e-6, 12345.6])
def test_random_rounding_is_unbiased(dtype, value):
    n = 1 << 16
    x = torch.full((n,), value)
    rounded = round_at_random(x, dtype, stream(1, 0, "w"), 3)
    assert torch.equal(rounded.to(dtype).float(), rounded) and len(rounded.unique()) == 2
    spread = float(rounded.double().std()) / math.sqrt(n)
    assert abs(float(rounded.double().mean()) - float(x[0])) < 5 * spread


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_random_rounding_keeps_infinity_nan_and_what_fits(backend, dtype):
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1.0, -1.5, 6.1035e-05]).to(dtype)
    params, zeros = [special.clone()], [torch.zeros(8)]
    selection = [Selection.every(special)]
    sparse_sgd_step_(params, [special * 0], [], selection, lr=0.0, step=1, streams=[5], backend=backend)
    expected = torch.where(special.isfinite(), special, torch.nan)  # 0 * inf: as torch.optim.SGD
    assert torch.equal(params[0].isnan(), expected.isnan()) and torch.equal(params[0][3:], special[3:])
    assert not zeros[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["random", "runs", "all"])
@pytest.mark.parametrize("options", [
    {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.1},
])  # fmt: skip
def test_sgd_is_that_of_torch(backend, kind, options):
    s = Sample(kind)
    theirs = [torch.nn.Parameter(p.clone()) for p in s.params]
    optimizer = torch.optim.SGD(theirs, lr=0.1, **options)
    before = [p.clone() for p in s.params]
    buffers = [torch.zeros(x.count) for x in s.selections] if "momentum" in options else []
    for step in range(1, 4):
        for p, grad in zip(theirs, s.grads, strict=True):
            p.grad = grad * step
        optimizer.step()
        grads = [g * step for g in s.grads]
        sparse_sgd_step_(s.params, grads, buffers, s.selections, lr=0.1, step=step, backend=backend, **options)
    for p, q, b, mask in zip(s.params, theirs, before, s.masks, strict=True):
        torch.testing.assert_close(p, torch.where(mask, q.data, b), rtol=2e-6, atol=1e-6)
        assert torch.equal(p[~mask], b[~mask])


@pytest.mark.skipif(OP.absent("cpu") is not None, reason="no cpu")
def test_bytes_do_not_depend_on_the_number_of_threads():
    threads, seen = torch.get_num_threads(), []
    keys = [stream(0, 0, str(i)) for i in range(len(SHAPES))]
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out = [Sample("random").step("cpu"), Sample("random", torch.bfloat16).step("cpu", streams=keys)]
            seen.append([t for s in out for t in (*s.params, *s.exp_avgs, *s.exp_avg_sqs)])
    finally:
        torch.set_num_threads(threads)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def _raw(op):
    s = Sample("random", shapes=[(9, 5), (7,)])
    items, offsets = [x.items for x in s.selections], [x.offsets for x in s.selections]
    if op is OP:
        scalars = (1e-2, 0.9, 0.99, 1e-8, 0.1, 5, False)
        return (s.params, s.grads, s.exp_avgs, s.exp_avg_sqs, [], items, offsets, [], None, None, None, *scalars)
    return (
        s.params,
        s.grads,
        s.exp_avgs,
        [],
        items,
        offsets,
        [],
        None,
        None,
        None,
        0.1,
        0.9,
        0.0,
        0.1,
        False,
        5,
        False,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [OP, SGD], ids=lambda op: op.name)
def test_opcheck_passes_and_the_step_compiles_without_a_graph_break(backend, op):
    torch.library.opcheck(op.overload(backend), _raw(op))
    torch._dynamo.reset()
    ours, theirs = _raw(op), _raw(op)
    torch.compile(lambda *a: op(*a, backend=backend), fullgraph=True, backend="aot_eager")(*ours)
    op(*theirs, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    assert not torch.equal(ours[0][0], _raw(op)[0][0])


@pytest.mark.skipif(OP.absent("cpu") is not None, reason="no cpu")
@pytest.mark.parametrize("op", [OP, SGD], ids=lambda op: op.name)
@pytest.mark.parametrize("harm", ["moment", "gradient", "layout", "length"])
def test_the_kernel_guards_its_memory(op, harm):
    args = [list(a) if isinstance(a, list) else a for a in _raw(op)]
    if harm == "moment":
        args[2][0] = args[2][0][:-1]
    elif harm == "gradient":
        args[1][0] = args[1][0][:-1]
    elif harm == "layout":
        args[0][0] = args[0][0].t()
    else:
        args[2].pop()
    with pytest.raises(RuntimeError, match=op.name):
        op(*args, backend="cpu")


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
    with pytest.raises(ArgumentError, match=r"exp_avgs\[0\] must be contiguous float32 \["):
        sparse_adamw_step_(
            s.params, s.grads, [m.double() for m in s.exp_avgs], s.exp_avg_sqs, s.selections, lr=1, step=1
        )
    with pytest.raises(ArgumentError, match=r"grads\[0\] must have 45 or \d+ entries"):
        sparse_adamw_step_(s.params, [g[:2] for g in s.grads], *lists[2:], lr=0.1, step=1)
    with pytest.raises(ArgumentError, match="streams and masters exclude each other"):
        sparse_adamw_step_(*lists, lr=0.1, step=1, masters=s.exp_avgs, streams=[1, 2])
    with pytest.raises(ArgumentError, match="buffers must be given if and only if momentum"):
        sparse_sgd_step_(s.params, s.grads, s.exp_avgs, s.selections, lr=0.1, step=1)
    with pytest.raises(ArgumentError, match="nesterov needs momentum"):
        sparse_sgd_step_(s.params, s.grads, [], s.selections, lr=0.1, step=1, nesterov=True)
