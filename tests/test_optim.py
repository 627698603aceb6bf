"""SparseAdamW and SparseSGD keep torch.optim's contract for what is selected, and leave everything else alone."""

import copy
import io
import pickle

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError

OPTIMIZERS = {
    "adamw": (ta.SparseAdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (ta.SparseSGD, torch.optim.SGD, {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9}),
}
BOTH = pytest.mark.parametrize("kind", OPTIMIZERS)


def _model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(13, 40), torch.nn.LayerNorm(40), torch.nn.GELU(), torch.nn.Linear(40, 3)
    return torch.nn.Sequential(*layers).to(dtype)


def _masks(model, density=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return ta.Masks.pack({n: torch.rand(p.shape, generator=g) < density for n, p in model.named_parameters()})


def _backward(model, step, factor=1.0):
    """A loss and its gradients; another one each step."""
    g = torch.Generator().manual_seed(step)
    x, y = torch.randn(16, 13, generator=g), torch.randn(16, 3, generator=g)
    dtype = next(model.parameters()).dtype
    loss = (model(x.to(dtype)).float() - y).square().mean()
    (loss * factor).backward()
    return loss.detach()


def _train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        _backward(model, step)
        optimizer.step()
    return model


def _weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@BOTH
def test_all_ones_masks_train_as_torch_over_200_steps(kind):
    sparse, dense, options = OPTIMIZERS[kind]
    ours, theirs = _model(), _model()
    _train(ours, sparse(ours.named_parameters(), ta.Masks.full(_weights(ours), True), **options), 200)
    _train(theirs, dense(theirs.parameters(), foreach=True, **options), 200)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)  # 200 steps amplify float32's last bit


@pytest.mark.parametrize("beta1", [0.9, 0.3, 0.0])
def test_given_the_same_gradients_each_weight_is_within_a_few_roundings_of_torch(beta1):
    p = torch.nn.Parameter(torch.randn(5000, generator=torch.Generator().manual_seed(0)))
    q = torch.nn.Parameter(p.detach().clone())
    options = {"lr": 1e-3, "betas": (beta1, 0.999), "weight_decay": 0.1}
    ours = ta.SparseAdamW([("p", p)], ta.Masks.full({"p": p}, True), **options)
    theirs = torch.optim.AdamW([q], foreach=True, **options)
    for step in range(200):
        g = torch.Generator().manual_seed(step)
        p.grad = q.grad = torch.randn(5000, generator=g) * 10 ** torch.randn(5000, generator=g)
        ours.step()
        theirs.step()
    eps = torch.finfo(torch.float32).eps
    assert ((p - q).abs() <= 4 * eps * q.abs() + 200 * eps * 1e-3).all()
    torch.testing.assert_close(ours.state[p]["exp_avg_sq"], theirs.state[q]["exp_avg_sq"], rtol=2 * eps, atol=0)


@BOTH
def test_selected_weights_are_those_of_dense_training_and_the_rest_keeps_its_bits(kind):
    sparse, dense, options = OPTIMIZERS[kind]
    ours, theirs = _model(), _model()
    masks, start = _masks(ours), _weights(ours)
    a, b = sparse(ours.named_parameters(), masks, **options), dense(theirs.parameters(), foreach=True, **options)
    for step in range(5):
        _train(ours, a, 1, step)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = p.grad
        b.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        mask = masks[name]
        torch.testing.assert_close(p[mask], q[mask], rtol=1e-6, atol=1e-7)
        assert torch.equal(p[~mask], start[name][~mask]) and not torch.equal(p[mask], start[name][mask])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_keep_their_bits_over_1000_steps(kind, dtype):
    sparse, _, options = OPTIMIZERS[kind]
    model = _model(dtype)
    masks, start = _masks(model), _weights(model)
    optimizer = sparse(model.named_parameters(), masks, **options)
    for step in range(1000):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1 * (step % 7 - 3))
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p[~masks[name]], start[name][~masks[name]])


@pytest.mark.parametrize(
    ("kind", "dtype", "options"),
    [
        ("adamw", torch.float32, {}),
        ("sgd", torch.float32, {}),
        ("adamw", torch.bfloat16, {}),
        ("sgd", torch.bfloat16, {}),
        ("adamw", torch.bfloat16, {"stochastic_rounding": True}),
        ("adamw", torch.bfloat16, {"master_weights": False}),
    ],
)
def test_a_reloaded_optimizer_continues_bit_by_bit(kind, dtype, options):
    sparse, _, rest = OPTIMIZERS[kind]
    options = {**rest, **options}
    model = _model(dtype)
    masks = _masks(model)
    optimizer = sparse(model.named_parameters(), masks, **options)
    _train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    _train(model, optimizer, 3, 3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = _model(dtype, seed=1)
    other.load_state_dict(saved["model"])
    again = sparse(other.named_parameters(), masks, **options)
    again.load_state_dict(saved["optimizer"])
    _assert_equal(_weights(_train(other, again, 3, 3)), _weights(model))


def test_a_state_of_another_mask_is_refused_by_name():
    model = _model()
    optimizer = ta.SparseAdamW(model.named_parameters(), _masks(model))
    _train(model, optimizer, 1)
    masks = {name: mask for name, mask in _masks(model).items()}
    masks["3.weight"][0, 0] ^= True
    other = ta.SparseAdamW(model.named_parameters(), ta.Masks.pack(masks))
    with pytest.raises(ArgumentError, match=r"3\.weight: the optimizer state belongs to another mask"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ArgumentError, match=r"0\.weight: the optimizer state belongs to another mask"):
        other.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copied_optimizer_steps_its_own_copy(copied):
    model = _model()
    optimizer = ta.SparseAdamW(model.named_parameters(), _masks(model), lr=1e-2)
    _train(model, optimizer, 1)
    twin, again = copied((model, optimizer))
    _assert_equal(_weights(_train(twin, again, 2, 1)), _weights(_train(model, optimizer, 2, 1)))


def test_the_state_is_as_small_as_promised():
    p = torch.nn.Parameter(torch.randn(1000, 700))
    masks = ta.Masks.pack({"p": torch.rand(1000, 700, generator=torch.Generator().manual_seed(0)) < 0.1})
    optimizer = ta.SparseAdamW([("p", p)], masks)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].shape == (masks.count(),)
    assert optimizer.state_bytes <= p.numel() * (10 * masks.density + 1 / 32)


@BOTH
def test_groups_and_schedulers_are_those_of_torch(kind):
    sparse, dense, options = OPTIMIZERS[kind]
    ours, theirs = _model(), _model()

    def groups(model, named):
        pairs = list(model.named_parameters())
        halves = pairs[:2], pairs[2:]
        return [
            {"params": half if named else [p for _, p in half], "lr": lr}
            for half, lr in zip(halves, (3e-3, 1e-2), strict=True)
        ]

    a = sparse(groups(ours, True), ta.Masks.full(_weights(ours), True), **options)
    b = dense(groups(theirs, False), foreach=True, **options)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10) for o in (a, b)]
    for step in range(10):
        _train(ours, a, 1, step)
        _train(theirs, b, 1, step)
        for schedule in schedules:
            schedule.step()
    assert [g["lr"] for g in a.param_groups] == [g["lr"] for g in b.param_groups]
    assert a.param_groups[1]["param_names"] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_closure_is_called_with_gradients_enabled():
    model, twin = _model(), _model()
    optimizer = ta.SparseAdamW(model.named_parameters(), _masks(model), lr=1e-2)
    assert torch.equal(optimizer.step(lambda: _backward(model, 0)), _backward(twin, 0))
    _train(twin2 := _model(), ta.SparseAdamW(twin2.named_parameters(), _masks(model), lr=1e-2), 1)
    _assert_equal(_weights(model), _weights(twin2))


def test_accumulated_gradients_are_summed():
    model, twin = _model(), _model()
    a, b = (ta.SparseAdamW(m.named_parameters(), _masks(m), lr=1e-2) for m in (model, twin))
    _backward(model, 0)
    _backward(model, 1)
    a.step()
    for step in (0, 1):
        _backward(twin, step)
    b.step()
    _assert_equal(_weights(model), _weights(twin))


def test_a_parameter_without_a_gradient_is_left_alone():
    model = _model()
    start = _weights(model)
    optimizer = ta.SparseAdamW(model.named_parameters(), _masks(model))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    assert list(optimizer.state) == [model[0].weight]
    assert torch.equal(model[3].weight, start["3.weight"])


@pytest.mark.parametrize("unscaled", [False, True])
def test_grad_scaler_scales_skips_and_grows_as_for_torch(unscaled):
    ours, theirs = _model(), _model()
    a = ta.SparseAdamW(ours.named_parameters(), ta.Masks.full(_weights(ours), True), lr=1e-2)
    b = torch.optim.AdamW(theirs.parameters(), lr=1e-2, foreach=True)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2)]
    for step in range(6):
        for model, optimizer, scaler in ((ours, a, scalers[0]), (theirs, b, scalers[1])):
            optimizer.zero_grad()
            _backward(model, step, scaler.scale(torch.tensor(1.0)))
            if step == 2:
                model[0].bias.grad[1] = torch.inf
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() != 1024
    assert a.skipped_steps == 1 and a.state[ours[0].bias]["step"] == 5
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("over", ["selected", "all"])
def test_clipping_bounds_the_norm(over):
    model, twin = _model(), _model()
    masks = _masks(model)
    a, b = (ta.SparseSGD(m.named_parameters(), masks, lr=1.0) for m in (model, twin))
    _backward(model, 0)
    _backward(twin, 0)
    if over == "selected":
        norm = torch.cat([p.grad[masks[n]] for n, p in twin.named_parameters()]).norm()
        for p in twin.parameters():
            p.grad *= 0.01 / norm
    else:
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
    torch.testing.assert_close(a.clip_grad_norm_(0.01, over=over), norm)
    a.step()
    b.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    _backward(model, 1)
    a.clip_grad_norm_(1e-6)
    a.zero_grad()
    assert a._clip is None
    with pytest.raises(ArgumentError, match="over must be one of selected, all"):
        a.clip_grad_norm_(1.0, over="some")
    with pytest.raises(ArgumentError, match="max_norm must be positive, got 0"):
        a.clip_grad_norm_(0)


@BOTH
def test_a_large_bound_clips_nothing(kind):
    sparse, _, options = OPTIMIZERS[kind]
    model, twin = _model(), _model()
    a, b = (sparse(m.named_parameters(), _masks(m), **options) for m in (model, twin))
    for step in range(2):
        _backward(model, step)
        a.clip_grad_norm_(1e6)
        a.step()
        a.zero_grad()
    _assert_equal(_weights(model), _weights(_train(twin, b, 2)))


@BOTH
def test_compact_gradients_are_used_and_cleared(kind):
    sparse, _, options = OPTIMIZERS[kind]
    model, twin = _model(), _model()
    masks = _masks(model)
    a, b = (sparse(m.named_parameters(), masks, **options) for m in (model, twin))
    for step in range(3):
        a.zero_grad()
        _backward(model, step)
        for name, p in model.named_parameters():
            p.compact_grad, p.grad = p.grad[masks[name]], None
        a.step()
    _assert_equal(_weights(model), _weights(_train(twin, b, 3)))
    with pytest.raises(ArgumentError, match="over='all' needs dense gradients, got compact_grad"):
        a.clip_grad_norm_(1.0, over="all")
    a.zero_grad()
    assert all(p.compact_grad is None for p in model.parameters())
    model[0].weight.compact_grad = torch.ones(3)
    with pytest.raises(ArgumentError, match=r"0\.weight: compact_grad must have shape \[\d+\], got \[3\]"):
        a.step()


@BOTH
def test_stepping_in_the_backward_pass_gives_the_same_bits_and_keeps_no_gradient(kind):
    sparse, _, options = OPTIMIZERS[kind]
    model, twin = _model(), _model()
    a, b = (sparse(m.named_parameters(), _masks(m), **options) for m in (model, twin))
    a.step_in_backward()
    for step in range(3):
        _backward(model, step)
        assert all(p.grad is None for p in model.parameters())
        a.step()
    _assert_equal(_weights(model), _weights(_train(twin, b, 3)))


def test_what_stepping_in_the_backward_pass_cannot_do_is_refused():
    model = _model()
    optimizer = ta.SparseAdamW(model.named_parameters(), _masks(model))
    optimizer.step_in_backward()
    with pytest.raises(ArgumentError, match="clipping needs all gradients at once"):
        optimizer.clip_grad_norm_(1.0)
    with pytest.raises(ArgumentError, match="before a closure could return"):
        optimizer.step(lambda: None)
    _backward(model, 0)
    with pytest.raises(ArgumentError, match="step_in_backward cannot accumulate"):
        _backward(model, 1)
    optimizer.found_inf = torch.tensor(0.0)
    with pytest.raises(ArgumentError, match="before GradScaler can check"):
        optimizer.step()
    skipping = ta.SparseAdamW(model.named_parameters(), _masks(model), nonfinite="skip")
    with pytest.raises(ArgumentError, match="nonfinite='skip' needs all gradients at once"):
        skipping.step_in_backward()


def test_gradients_that_are_not_finite_are_skipped_or_named():
    model = _model()
    masks, start = _masks(model), _weights(model)
    frozen = (~masks["0.weight"]).nonzero()[0]
    trained = masks["0.weight"].nonzero()[0]
    skipping = ta.SparseAdamW(model.named_parameters(), masks, nonfinite="skip")
    _backward(model, 0)
    model[0].weight.grad[tuple(trained)] = torch.nan
    skipping.step()
    _assert_equal(_weights(model), start)
    assert skipping.skipped_steps == 1 and not skipping.state
    raising = ta.SparseAdamW(model.named_parameters(), masks, nonfinite="error")
    with pytest.raises(ArgumentError, match=r"the gradient of 0\.weight is not finite"):
        raising.step()
    model[0].weight.grad[tuple(trained)] = 0.0
    model[0].weight.grad[tuple(frozen)] = torch.nan
    raising.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_masters_keep_updates_that_bfloat16_alone_would_lose():
    def trained(**options):
        p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
        optimizer = ta.SparseAdamW([("p", p)], ta.Masks.full({"p": p}, True), lr=1e-4, weight_decay=0, **options)
        for _ in range(100):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return float(p.detach().float().mean())

    assert trained(master_weights=False) == 1.0
    assert trained() == pytest.approx(0.99, abs=0.004)
    assert trained(stochastic_rounding=True) == pytest.approx(0.99, abs=0.004)


def test_a_stale_graph_is_noticed():
    p = torch.nn.Parameter(torch.randn(4))
    optimizer = ta.SparseAdamW([("p", p)], ta.Masks.full({"p": p}, True))
    loss = (p * p).sum()
    p.grad = torch.ones(4)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_parameters_without_a_mask_are_left_out_and_an_empty_mask_has_no_state():
    model = _model()
    model[1].requires_grad_(False)
    masks = {n: m for n, m in _masks(model).items() if not n.startswith("1.")}
    masks["0.bias"][:] = False
    optimizer = ta.SparseAdamW(model.named_parameters(), ta.Masks.pack(masks))
    _train(model, optimizer, 1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert model[0].bias not in optimizer.state and model[0].weight in optimizer.state


def test_parameters_and_masks_that_do_not_fit_are_refused_by_name():
    model = _model()
    masks = {name: mask for name, mask in _masks(model).items()}

    def refused(match, changed, parameters=None, **options):
        with pytest.raises(ArgumentError, match=match):
            ta.SparseAdamW(parameters or model.named_parameters(), ta.Masks.pack(changed), **options)

    less = {n: m for n, m in masks.items() if n != "3.bias"}
    refused(r"3\.bias requires a gradient but has no mask", less)
    refused("head: the mask fits no parameter", {**masks, "head": masks["3.bias"]})
    refused(
        r"3\.bias: the mask must have shape \[3\] like the parameter, got \[4\]", {**less, "3.bias": torch.ones(4) > 0}
    )
    refused("masks must select at least one entry", {n: m & False for n, m in masks.items()})
    refused(r"must be \(name, parameter\) pairs", masks, list(model.parameters()))
    refused("lr must not be negative, got -1", masks, lr=-1)
    refused("betas must be two numbers", masks, betas=(0.9, 1.0))
    refused("nonfinite must be one of", masks, nonfinite="ignore")
    refused("exclude each other", masks, master_weights=True, stochastic_rounding=True)
    double = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    refused("p must be float32, bfloat16 or float16", {"p": torch.ones(3) > 0}, [("p", double)])
    strided = torch.nn.Parameter(torch.ones(3, 4).t())
    refused("p must be contiguous", {"p": torch.ones(4, 3) > 0}, [("p", strided)])
    with pytest.raises(ArgumentError, match="nesterov needs momentum"):
        ta.SparseSGD(model.named_parameters(), ta.Masks.pack(masks), nesterov=True)
