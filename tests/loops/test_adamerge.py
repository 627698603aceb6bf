"""Learning merge coefficients by entropy, on a transformer of two blocks."""

import pytest
import torch
from torch.func import functional_call
from torch.utils.data import DataLoader

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.finetune import DivergedError
from taskarith_fast.loops.merged_model import MergedModel, mean_entropy, resident
from taskarith_fast.merging.methods import LEARNED
from taskarith_fast.models import random_head
from tests.loops.tiny import SIZE, vit

TASKS = ("a", "b", "c")
FAST = {"steps": 6, "lr": 2e-2}


def _states(spread=0.1):
    g = torch.Generator().manual_seed(0)
    base = vit().state_dict()
    return base, [{n: t + spread * torch.randn(t.shape, generator=g) for n, t in base.items()} for _ in TASKS]


def _heads():
    return {name: random_head(16, 5, seed=i) for i, name in enumerate(TASKS)}


def _images(count=4, batch=6):
    g = torch.Generator().manual_seed(3)
    return {name: [torch.randn(batch, 3, SIZE, SIZE, generator=g) for _ in range(count)] for name in TASKS}


def _adamerge(**changes):
    base, finetuned = _states()
    arguments = {"model": vit(), "base": base, "finetuned": finetuned, "heads": _heads(), "loaders": _images()}
    return ta.adamerge(**{**arguments, **FAST, **changes})


def _by_autograd(settings, coefficients, batches):
    """The published way: entropy differentiated through functional_call and the merge of float64 task vectors."""
    base, finetuned = _states()
    c = settings.used(coefficients)
    theta = {
        n: b.double() + sum(c[t, i] * (m[n].double() - b.double()) for t, m in enumerate(finetuned))
        for i, (n, b) in enumerate(base.items())
    }
    loss, model = 0, vit().double()
    for name, head in _heads().items():
        for images in batches[name]:
            logits = head.double()(functional_call(model, theta, (images.double(),)))
            p = logits.softmax(-1)
            loss = loss - (p * p.log()).sum(-1).mean()
    return torch.autograd.grad(loss, coefficients)[0], float(loss.detach())


@pytest.mark.parametrize("clamp", [True, False])
def test_gradient_equals_autograd_through_the_merge(clamp):
    base, finetuned = _states()
    settings = LEARNED["adamerging"].function(clamp=clamp)
    first, *rest = resident(model := vit(), [base, *finetuned])
    merged = MergedModel(model, settings.prepare(first, rest))
    table = torch.rand(3, len(base), generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 1.4 - 0.2
    batches = _images(count=2)
    with merged.adapting(_heads()):
        merged.write(settings.used(table))
        gradient, entropies = merged.gradient(_heads(), batches)
    expected, loss = _by_autograd(settings, table.requires_grad_(True), batches)
    assert float(entropies.sum()) * 2 == pytest.approx(loss, rel=1e-6)
    found = gradient * settings.open(table.detach())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(expected.abs().max()) * 1e-5)
    assert ((found == 0) == ((table < 0) | (table > 1))).all() or not clamp


@pytest.mark.parametrize("method", LEARNED)
def test_a_few_steps_lower_the_entropy(method):
    images = {name: batches[:1] for name, batches in _images().items()}  # the same images at every step
    result = _adamerge(method=method, steps=15, loaders=images)
    course = [sum(row) for row in zip(*result.entropy.values(), strict=True)]
    assert course[-1] < course[0] - 1e-3 and len(course) == result.steps == 15


def test_no_step_is_task_arithmetic_bit_for_bit():
    base, finetuned = _states()
    result, expected = _adamerge(steps=0), ta.merge(base, finetuned, "task_arithmetic", scale=0.3)
    assert list(result.state) == list(base) and result.names == tuple(base) and result.tasks == TASKS
    assert all(torch.equal(result.state[name], expected[name]) for name in base)
    assert torch.equal(result.coefficients, torch.full((3, len(base)), 0.3, dtype=torch.float64))
    assert result.entropy == {name: [] for name in TASKS}


def test_no_step_of_cart_plus_plus_is_cart():
    base, finetuned = _states()
    result, expected = _adamerge(steps=0, method="cart_plus_plus", rank_ratio=0.2), ta.merge(
        base, finetuned, "cart", rank_ratio=0.2
    )  # fmt: skip
    for name in base:
        torch.testing.assert_close(result.state[name], expected[name], rtol=0, atol=1e-6)


def test_no_step_of_adamerging_plus_plus_is_scaled_ties_by_sum():
    base, finetuned = _states()
    result = _adamerge(steps=0, method="adamerging_plus_plus")
    expected = ta.merge(base, finetuned, "ties", combine="sum", scale=0.3)
    for name in base:
        torch.testing.assert_close(result.state[name], expected[name], rtol=0, atol=1e-7)


def test_the_state_returned_is_the_merge_of_the_coefficients_returned_and_the_model_holds_it():
    base, finetuned = _states()
    model = vit(1)
    result = _adamerge(model=model)
    for i, name in enumerate(result.names):
        sums = ta.ops.weighted_sum([base[name]], [[m[name]] for m in finetuned], result.coefficients[:, i])
        assert torch.equal(result.state[name], sums[0]) and torch.equal(result.state[name], model.state_dict()[name])
    assert not torch.equal(result.coefficients, _adamerge(steps=0).coefficients)


def test_one_coefficient_a_task_is_the_same_for_all_tensors():
    result = _adamerge(task_wise=True)
    assert result.coefficients.shape == (3, len(result.names))
    assert (result.coefficients == result.coefficients[:, :1]).all() and len(set(result.coefficients[:, 0])) == 3
    steps = (_adamerge(task_wise=True, steps=1).coefficients - 0.3)[:, 0]
    slope = _first_gradient().sum(1)  # Adam's first step is lr times the sign
    torch.testing.assert_close(steps, -FAST["lr"] * slope.sign(), rtol=1e-5, atol=0)


def _first_gradient():
    settings = LEARNED["adamerging"].function()
    table = torch.full((3, len(vit().state_dict())), 0.3, dtype=torch.float64, requires_grad=True)
    return _by_autograd(settings, table, {name: batches[:1] for name, batches in _images().items()})[0]


def test_clamped_coefficients_stay_between_zero_and_one_and_free_ones_do_not():
    clamped, free = _adamerge(lr=0.5), _adamerge(lr=0.5, clamp=False)
    assert clamped.coefficients.min() == 0 and clamped.coefficients.max() == 1
    assert free.coefficients.min() < 0 and free.coefficients.max() > 1


def test_a_coefficient_that_has_left_the_clamp_gets_no_gradient(monkeypatch):
    slopes = iter([-1.0, -1.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(
        MergedModel, "gradient", lambda self, *_: (torch.full((3, len(self.merge.names)), next(slopes)), torch.zeros(3))
    )
    found = _adamerge(steps=5, lr=0.4).coefficients
    by_hand = torch.full((1,), 0.3, dtype=torch.float64)
    optimizer = torch.optim.Adam([by_hand], lr=0.4)
    for slope in (-1.0, -1.0, 0.0, 0.0, 0.0):  # 0.3, 0.7, 1.1: the third gradient meets a closed clamp
        by_hand.grad = torch.tensor([slope], dtype=torch.float64)
        optimizer.step()
    assert by_hand > 1 and (found == 1).all()


def test_dropout_is_off_while_adapting():
    base, finetuned = _states()
    model = torch.nn.Sequential(vit().train(), torch.nn.Dropout(0.5)).train()
    states = [{f"0.{name}": tensor for name, tensor in state.items()} for state in (base, *finetuned)]
    result = _adamerge(model=model, base=states[0], finetuned=states[1:])
    assert torch.equal(result.coefficients, _adamerge().coefficients) and model[1].training


def test_two_batches_a_step_are_taken_in_turn():
    loaders = _images(count=4)
    two = _adamerge(steps=1, batches_per_step=2, loaders=loaders)
    one = _adamerge(steps=2, lr=1e-12, loaders=loaders)
    for name in TASKS:
        assert two.entropy[name][0] == pytest.approx(sum(one.entropy[name]) / 2, rel=1e-6)


def test_equal_seeds_give_equal_bytes_whatever_else_draws_random_numbers():
    def run(seed):
        sets = {name: DataLoader(torch.cat(b), batch_size=5, shuffle=True) for name, b in _images().items()}
        return _adamerge(loaders=sets, seed=seed)

    first = run(0)
    torch.rand(7)
    drawn = torch.get_rng_state()
    second = run(0)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(first.coefficients, second.coefficients) and first.entropy == second.entropy
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert first.entropy != run(1).entropy


def test_labels_are_ignored():
    labelled = {name: [(x, torch.full((len(x),), -5)) for x in batches] for name, batches in _images().items()}
    assert torch.equal(_adamerge(loaders=labelled).coefficients, _adamerge().coefficients)


def test_states_heads_flags_and_modes_stay_as_they_were():
    base, finetuned = _states()
    heads, model = _heads(), vit().train()
    model.conv1.weight.requires_grad_(False)
    copies = [{n: t.clone() for n, t in state.items()} for state in (base, *finetuned)]
    _adamerge(model=model, base=base, finetuned=finetuned, heads=heads)
    for state, copy in zip((base, *finetuned), copies, strict=True):
        assert all(torch.equal(state[n], copy[n]) for n in copy)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert all(torch.equal(heads[n].weight, h.weight) and heads[n].weight.grad is None for n, h in _heads().items())


def test_a_base_that_is_the_models_own_memory_is_not_merged_over_while_it_is_read():
    model = vit()
    assert torch.equal(_adamerge(model=model, base=model.state_dict()).coefficients, _adamerge().coefficients)


def test_tensors_without_effect_keep_the_start():
    class WithLeftovers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.logit_scale = vit(), torch.nn.Parameter(torch.ones(()))
            self.register_buffer("steps", torch.tensor(3))
            self.register_buffer("unused", torch.ones(2))

        def forward(self, images):
            return self.encoder(images)

    base = WithLeftovers().state_dict()
    finetuned = [{n: t + 0.1 if t.is_floating_point() else t for n, t in base.items()} for _ in TASKS]
    result = _adamerge(model=WithLeftovers(), base=base, finetuned=finetuned)
    table = dict(zip(result.names, result.coefficients.T, strict=True))
    assert "steps" not in table and result.state["steps"] == 3
    for name in ("logit_scale", "unused"):
        assert (table[name] == 0.3).all()
        torch.testing.assert_close(result.state[name], base[name] + 0.3 * 3 * 0.1)
    assert (table["encoder.ln_post.weight"] != 0.3).any()


def test_tied_tensors_share_their_first_names_coefficients():
    model = vit()
    model.tied = model.class_embedding
    base = {n: t.clone() for n, t in model.state_dict().items()}
    finetuned = [{n: t + 0.1 for n, t in base.items()} for _ in TASKS]
    result = _adamerge(model=model, base=base, finetuned=finetuned)
    assert len(result.names) == len(base) - 1
    assert torch.equal(result.state["tied"], result.state["class_embedding"])
    finetuned[1]["tied"] = finetuned[1]["tied"] + 1
    with pytest.raises(CheckpointError, match=r"finetuned\[1\]: tied must equal class_embedding"):
        _adamerge(model=model, base=base, finetuned=finetuned)


def test_half_precision_states_are_merged_by_a_float32_model_and_come_back_in_their_type():
    base, *finetuned = ({n: t.bfloat16() for n, t in s.items()} for s in (_states()[0], *_states()[1]))
    result = _adamerge(base=base, finetuned=finetuned)
    assert {t.dtype for t in result.state.values()} == {torch.bfloat16}
    wide = _adamerge(base={n: t.float() for n, t in base.items()}, finetuned=[
        {n: t.float() for n, t in state.items()} for state in finetuned
    ])  # fmt: skip
    assert torch.equal(result.coefficients, wide.coefficients)


def test_entropy_of_equal_logits_is_log_of_the_classes_and_of_certainty_zero():
    assert float(mean_entropy(torch.zeros(4, 8))) == pytest.approx(torch.tensor(8.0).log())
    assert float(mean_entropy(torch.tensor([[1e4, 0.0], [0.0, 1e4]]))) == 0


def _without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": _without(_heads(), "b")}, "heads must have one for every task, but lacks 'b'"),
        ({"loaders": _without(_images(), "c")}, "loaders must have one for every task, but lacks 'c'"),
        ({"finetuned": _states()[1][:2]}, "finetuned must hold one state for each of the 3 heads, got 2"),
        ({"loaders": {**_images(), "a": []}}, r"loaders\['a'\] must give batches each time it is iterated, got none"),
        ({"loaders": {**_images(), "a": iter(_images(2)["a"])}}, "pass a list or a DataLoader, not a generator"),
        ({"loaders": {**_images(), "b": ["x"]}}, r"loaders\['b'\] must give images \[B, 3, S, S\] .* got str"),
        ({"loaders": {**_images(), "b": [torch.ones(3, 8, 8)]}}, r"must give images .* got \[3, 8, 8\]"),
        ({"loaders": {**_images(), "b": [torch.ones(0, 3, 8, 8)]}}, r"must give images .* got \[0, 3, 8, 8\]"),
        ({"method": "ties"}, "method must be one of adamerging, adamerging_plus_plus, cart_plus_plus; got 'ties'"),
        ({"step": 3}, "'adamerging' has the parameters .*; got 'step'; did you mean 'steps'"),
    ],
)
def test_unfit_arguments_are_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        _adamerge(**changes)


def test_states_that_do_not_fit_are_refused():
    base, finetuned = _states()
    with pytest.raises(CheckpointError, match=r"class_embedding: shape must be \[16\] as in base"):
        _adamerge(finetuned=[*finetuned[:2], {**finetuned[2], "class_embedding": torch.ones(3)}])
    states = [_without(state, "class_embedding") for state in (base, *finetuned)]
    with pytest.raises(CheckpointError, match=r"class_embedding: state must have .* but lacks it"):
        _adamerge(base=states[0], finetuned=states[1:])


def test_an_entropy_that_is_not_a_number_names_task_and_step():
    images = _images()
    images["b"][2] = torch.full_like(images["b"][2], torch.nan)
    model = vit().train()
    with pytest.raises(DivergedError, match="entropy of task 'b' must be finite, got nan at step 2"):
        _adamerge(model=model, loaders=images)
    assert model.training and all(p.grad is None for p in model.parameters())
