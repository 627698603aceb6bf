"""Linearized models against torch.func.jvp, and the promises of ta.linearize."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.models import linear_layer_names
from taskarith_fast.ops.linear import linear_route
from taskarith_fast.tangent import NoRuleError
from tests.tangent.models import NAMES, encoder, features, images


@pytest.fixture(autouse=True)
def slow_attention():
    """torch's inference kernel of nn.MultiheadAttention has no forward-mode AD."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def _fill(lin, spread=0.05, seed=2):
    g = torch.Generator().manual_seed(seed)
    for _, tau in lin.named_tau():
        tau.data = (spread * torch.randn(tau.shape, generator=g)).to(tau.dtype)


def _by_jvp(model, tau, x):
    """f + J tau by torch, with a graph back to tau."""
    weights = {name: p.detach() for name, p in model.named_parameters() if name in tau}
    with sdpa_kernel(SDPBackend.MATH):
        value, tangent = jvp(lambda w: features(functional_call(model, w, (x,))), (weights,), (tau,))
    return value + tangent


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_equal_those_of_func_jvp(name, dtype, tolerance):
    model, x = encoder(name, dtype), images(dtype=dtype)
    lin = ta.linearize(model)
    _fill(lin)
    tau = {n: p.detach().clone().requires_grad_() for n, p in lin.named_tau()}
    out, truth = features(lin(x)), _by_jvp(model, tau, x)
    torch.testing.assert_close(out, truth, rtol=tolerance, atol=tolerance)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    (out * weights).sum().backward()
    grads = torch.autograd.grad((truth * weights).sum(), list(tau.values()), allow_unused=True)
    largest = max(float(g.abs().max()) for g in grads if g is not None)
    for (n, p), grad in zip(lin.named_tau(), grads, strict=True):
        if grad is not None:
            torch.testing.assert_close(p.grad, grad, rtol=tolerance, atol=tolerance * largest, msg=n)


@pytest.mark.parametrize("name", NAMES)
def test_zero_tau_is_the_plain_model_bit_by_bit(name):
    model, x = encoder(name), images()
    lin = ta.linearize(model)
    with linear_route("linear"):
        assert torch.equal(features(lin(x)), features(model(x)))


def test_output_is_linear_in_tau():
    model, x = encoder("open_clip", torch.float64), images(dtype=torch.float64)
    lin = ta.linearize(model)
    base = lin(x).detach()
    moved = []
    for seed in (1, 2):
        _fill(lin, seed=seed)
        moved.append(({n: p.detach().clone() for n, p in lin.named_tau()}, lin(x).detach() - base))
    lin.load_tau({n: 3 * moved[0][0][n] - 2 * moved[1][0][n] for n in lin.names})
    torch.testing.assert_close(lin(x).detach() - base, 3 * moved[0][1] - 2 * moved[1][1], rtol=1e-10, atol=1e-12)


def test_named_tau_has_the_models_names_and_starts_at_zero():
    model = encoder("timm")
    lin = ta.linearize(model)
    tau = dict(lin.named_tau())
    assert list(tau) == [name for name, _ in model.named_parameters()]
    assert all(isinstance(p, nn.Parameter) and not p.any() for p in tau.values())
    trained = [p for p in lin.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in tau.values()}


def test_the_original_is_not_changed_and_does_not_move_the_expansion_point():
    model, x = encoder("ours").train(), images()
    lin = ta.linearize(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    before = lin(x)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(lin(x), before)
    lin.train()
    assert lin.training and not lin.model.training


def test_training_tau_reduces_the_loss_and_task_vector_gives_the_deltas():
    model, x = encoder("ours"), images(8)
    labels = torch.arange(8) % 3
    lin = ta.linearize(model)
    optimizer = torch.optim.AdamW(dict(lin.named_tau()).values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(lin(x), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    tau = lin.task_vector()
    other = ta.linearize(model)
    other.load_tau(tau)
    assert torch.equal(other(x), lin(x))


def test_a_masked_tau_stays_zero_outside_and_matches_a_dense_one_inside():
    model, x = encoder("ours", torch.float64), images(dtype=torch.float64)
    g = torch.Generator().manual_seed(4)
    masks = {n: torch.rand(p.shape, generator=g) < 0.3 for n, p in model.named_parameters() if n != "conv1.weight"}
    masks["ln_post.bias"] = torch.zeros_like(masks["ln_post.bias"])
    lin, dense = ta.linearize(model, masks=ta.Masks.pack(masks)), ta.linearize(model)
    assert "conv1.weight" not in lin.names and "ln_post.bias" not in lin.names
    _fill(lin)
    dense.load_tau({n: lin.task_vector().get(n, torch.zeros_like(p)) for n, p in model.named_parameters()})
    assert all(not d[~masks[n]].any() for n, d in lin.task_vector().items())
    torch.testing.assert_close(lin(x), dense(x), rtol=1e-10, atol=1e-12)
    lin(x).square().sum().backward()
    dense(x).square().sum().backward()
    full = dict(dense.named_tau())
    for name, p in lin.named_tau():
        torch.testing.assert_close(p.grad, full[name].grad * masks[name], rtol=1e-10, atol=1e-10)
    with pytest.raises(ArgumentError, match="must be 0 where its mask is False"):
        lin.load_tau({n: torch.ones_like(lin.task_vector()[n]) for n in lin.names})


def test_tau_of_the_linear_layers_only():
    model, x = encoder("open_clip", torch.float64), images(dtype=torch.float64)
    names = linear_layer_names(dict(model.named_parameters()), "p1")
    lin = ta.linearize(model, names=names)
    assert lin.names == names
    _fill(lin)
    tau = {n: p.detach() for n, p in lin.named_tau()}
    torch.testing.assert_close(lin(x), _by_jvp(model, tau, x), rtol=1e-10, atol=1e-10)


def test_a_low_rank_tau_is_the_product_of_its_factors():
    model, x = encoder("ours", torch.float64), images(dtype=torch.float64)
    lin = ta.linearize(model, rank=3)
    parts = dict(lin.named_tau())
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    assert parts[f"{name}.left"].shape == (96, 3) and parts[f"{name}.right"].shape == (3, 24)
    assert torch.equal(lin(x), model(x))
    assert "ln_post.bias" in parts
    _fill(lin)
    dense = ta.linearize(model)
    dense.load_tau(lin.task_vector())
    torch.testing.assert_close(lin(x), dense(x), rtol=1e-10, atol=1e-10)
    lin(x).sum().backward()
    dense(x).sum().backward()
    by_product = dict(dense.named_tau())[name].grad
    torch.testing.assert_close(parts[f"{name}.left"].grad, by_product @ parts[f"{name}.right"].detach().t())


class _Sinh(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return torch.sinh(x * self.weight)


def test_what_has_no_rule_is_refused_by_name():
    with pytest.raises(NoRuleError, match=r"1 \(BatchNorm1d\) must be a module with a rule .*fallback='jvp'"):
        ta.linearize(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    lin = ta.linearize(nn.Sequential(nn.Linear(8, 8), nn.Sequential(_Sinh())))
    with pytest.raises(NoRuleError, match=r"1\.0 \(_Sinh\) must .*: torch.sinh has no rule"):
        lin(torch.randn(2, 8))


def test_in_place_changes_and_detached_values_are_refused():
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    class InPlace(nn.Linear):
        def forward(self, x):
            return super().forward(x).add_(1)

    for kind, word in ((Detached, "detach"), (InPlace, "add_")):
        with pytest.raises(NoRuleError, match=word):
            ta.linearize(kind(3, 3))(torch.randn(2, 3))


def test_an_operator_of_this_package_on_a_pair_is_refused():
    class Odd(nn.Linear):
        def forward(self, x):
            return ta.ops.dual_gelu(super().forward(x), None)[0]

    with pytest.raises(NoRuleError, match="no rule"):
        ta.linearize(Odd(3, 3))(torch.randn(2, 3))


def test_the_fallback_is_exact_for_what_has_no_rule():
    model = nn.Sequential(nn.Linear(8, 8), _Sinh(), nn.BatchNorm1d(8)).double().eval()
    x = torch.randn(5, 8, dtype=torch.float64)
    lin = ta.linearize(model, fallback="jvp")
    _fill(lin)
    tau = {n: p.detach().clone().requires_grad_() for n, p in lin.named_tau()}
    truth = _by_jvp(model, tau, x)
    out = lin(x)
    torch.testing.assert_close(out, truth, rtol=1e-10, atol=1e-10)
    out.square().sum().backward()
    grads = torch.autograd.grad(truth.square().sum(), list(tau.values()))
    for (_, p), grad in zip(lin.named_tau(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-10, atol=1e-10)


def test_arguments_that_do_not_fit_are_refused():
    model = encoder("ours")
    with pytest.raises(ArgumentError, match=r"head.weight must be a floating parameter of the model"):
        ta.linearize(model, names=["head.weight"])
    with pytest.raises(ArgumentError, match=r"ln_post.bias: its mask must be bool \[24\], got torch.float32 \[24\]"):
        ta.linearize(model, masks={"ln_post.bias": torch.ones(24)})
    with pytest.raises(ArgumentError, match="fallback must be one of refuse, jvp"):
        ta.linearize(model, fallback="approximate")
    with pytest.raises(ArgumentError, match="rank must be at least 1 and excludes masks, got 0"):
        ta.linearize(model, rank=0)
    with pytest.raises(ArgumentError, match="must not require gradients"):
        ta.linearize(model)(images().requires_grad_())
    with pytest.raises(ArgumentError, match="must be in both deltas and tau"):
        ta.linearize(model).load_tau({})
    with pytest.raises(ArgumentError, match="low-rank tangent"):
        ta.linearize(model, rank=2).load_tau(ta.linearize(model).task_vector())


def test_autocast_stays_close_to_float32_and_trains_float32_tau():
    model, x = encoder("ours"), images()
    lin = ta.linearize(model)
    _fill(lin, 0.02)
    exact = lin(x)
    exact.square().sum().backward()
    grads = {n: p.grad.clone() for n, p in lin.named_tau()}
    lin.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = lin(x)
    out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
    assert all(p.grad.dtype == torch.float32 for _, p in lin.named_tau())
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    cosine = F.cosine_similarity(dict(lin.named_tau())[name].grad.flatten(), grads[name].flatten(), dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("name", ["ours", "open_clip", "timm", "ViTModel"])
def test_activation_checkpointing_changes_no_gradient_and_keeps_less(name):
    grads, kept = [], []
    for checkpointing in (False, True):
        lin = ta.linearize(encoder(name), checkpointing=checkpointing)
        _fill(lin)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            out = features(lin(images()))
        out.square().sum().backward()
        grads.append([p.grad for _, p in lin.named_tau()])
        kept.append(sum(sizes))
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    assert kept[1] < kept[0]


def test_a_models_own_checkpointing_is_refused():
    model = encoder("open_clip")
    model.set_grad_checkpointing(True)
    with pytest.raises(ArgumentError, match=r"transformer has its own checkpointing on.*checkpointing=True"):
        ta.linearize(model)


def test_a_copy_and_a_state_dict_carry_everything():
    lin = ta.linearize(encoder("ours"), rank=2)
    _fill(lin)
    x = images()
    assert torch.equal(copy.deepcopy(lin)(x), lin(x))
    other = ta.linearize(encoder("ours"), rank=2)
    other.load_state_dict(lin.state_dict())
    assert torch.equal(other(x), lin(x))


def test_frozen_layers_cost_no_product(monkeypatch):
    """Tangents of the last norm alone leave every product to the plain model."""
    model, calls = encoder("ours"), []
    lin = ta.linearize(model, names=["ln_post.weight", "ln_post.bias"])
    original = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(1) or original(*args))
    with linear_route("linear"):
        model(images())
        plain = len(calls)
        lin(images()).sum().backward()
    assert plain > 0 and len(calls) == 2 * plain


def test_compiling_it_leaves_it_as_it_is():
    lin = ta.linearize(encoder("ours"))
    _fill(lin)
    x = images()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(lin, backend="aot_eager")(x), lin(x))


def _kept_bytes(run, outside):
    """Bytes kept for the backward pass, apart from the tensors `outside`, each storage once."""
    known, kept = {t.untyped_storage().data_ptr() for t in outside}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = run()
    return sum(kept.values()), out


@pytest.mark.parametrize("name", ["ours", "open_clip", "timm", "ViTModel"])
def test_an_ordinary_steps_activations_are_kept_and_hardly_more(name):
    model, x = encoder(name), images(8)
    lin = ta.linearize(model)
    _fill(lin)
    tangents = [*lin.parameters(), *model.parameters()]
    ordinary, _a = _kept_bytes(lambda: model(x), tangents)
    linear, _b = _kept_bytes(lambda: lin(x), tangents)
    assert linear <= 1.15 * ordinary


def _train_apart(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    lin = torch.nn.parallel.DistributedDataParallel(ta.linearize(encoder("ours")))
    lin(images(4)[2 * rank : 2 * rank + 2]).square().mean().backward()
    if rank == 0:
        torch.save([p.grad for _, p in lin.module.named_tau()], f"{folder}/grads.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    torch.multiprocessing.spawn(_train_apart, (str(tmp_path),), nprocs=2)
    lin = ta.linearize(encoder("ours"))
    lin(images(4)).square().mean().backward()
    for (_, p), grad in zip(lin.named_tau(), torch.load(tmp_path / "grads.pt"), strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6)
