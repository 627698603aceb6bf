"""Linearized recipes train what the published code trains; evaluation, search and negation by tangents."""

import dataclasses

import pytest
import torch
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import taskarith_fast as ta
from taskarith_fast import data
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.evaluate import evaluate, load_state
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.linearized import LinearizedEvaluator, compare_posthoc, search_negation, search_scale
from taskarith_fast.loops.recipes import RECIPES, has_compact_gradients, linearized, within
from taskarith_fast.loops.schedule import learning_rate
from taskarith_fast.loops.search import search_lr
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit
from tests.models.tiny import FAMILIES, tiny_encoder

STEPS = 5
SHORT = FinetuneConfig(
    steps=STEPS, batch_size=16, lr=3e-3, warmup=2, device="cpu", weight_decay=0.5, clip=0.2, recipe="linearized",
    lora_rank=4, lora_alpha=8.0,
)  # fmt: skip
LONGER = dataclasses.replace(SHORT, steps=40, batch_size=32, weight_decay=0.1, clip=1.0)


def _head(classes=10):
    return random_head(16, classes, seed=0)


def _some_masks():
    generator = torch.Generator().manual_seed(0)
    return Masks.pack({name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in vit().named_parameters()})


def _published(config, masks=None):
    """LinearizedModel of the published code: AdamW on the whole parameters, jvp along their distance from the start.

    With masks, gradients are cut after clipping, as TaLoS's optimizer does, and so is decay.
    """
    encoder, head = vit(), _head()
    start = {name: p.detach() for name, p in encoder.named_parameters()}
    moved = {name: p.clone().requires_grad_() for name, p in start.items()}
    optimizer = torch.optim.AdamW(moved.values(), weight_decay=config.weight_decay)
    batches = data.batches(
        digits().splits["train"], batch_size=16, image_size=8, mean=encoder.mean, std=encoder.std, shuffle=True
    )
    losses = []
    for step, (images, labels) in zip(range(config.steps), batches, strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps=config.steps, lr=config.lr, warmup=config.warmup)
        tangents = {name: p - start[name] for name, p in moved.items()}
        with sdpa_kernel(SDPBackend.MATH):
            value, tangent = jvp(lambda w, x=images: functional_call(encoder, w, (x,)), (start,), (tangents,))
        loss = torch.nn.functional.cross_entropy(head(value + tangent), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moved.values(), config.clip)
        before = {name: p.detach().clone() for name, p in moved.items()}
        optimizer.step()
        if masks is not None:
            with torch.no_grad():
                for name, p in moved.items():
                    p.copy_(torch.where(masks[name], p, before[name]))
        losses.append(loss.item())
    return {name: p.detach() - start[name] for name, p in moved.items()}, losses


@pytest.mark.parametrize("recipe", ["linearized", "linearized+talos"])
def test_training_is_that_of_the_published_code(recipe):
    config, masks = dataclasses.replace(SHORT, recipe=recipe), _some_masks() if "talos" in recipe else None
    result = finetune(vit(), _head(), digits(), config, masks=masks)
    tau, losses = _published(config, masks)
    assert result.history["loss"] == pytest.approx(losses, rel=1e-5)
    for name, delta in tau.items():
        torch.testing.assert_close(result.tau[name], delta, atol=3e-6, rtol=2e-4)
        torch.testing.assert_close(result.state[name], vit().state_dict()[name] + result.tau[name])


def test_what_masks_leave_out_has_no_tangent():
    masks = _some_masks()
    result = finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, recipe="linearized+masked"), masks=masks)
    for name, delta in result.tau.items():
        assert not delta[~masks[name]].any() and delta[masks[name]].all(), name


@pytest.mark.parametrize("recipe", [name for name, row in RECIPES.items() if row.linearized])
def test_the_names_trained_are_those_of_the_plain_recipe_and_a_run_repeats_with_checkpointing(recipe):
    masks = _some_masks() if RECIPES[recipe].kind == "masks" else None
    config = dataclasses.replace(SHORT, recipe=recipe)
    result = finetune(vit(), _head(), digits(), config, masks=masks)
    plain = finetune(vit(), _head(), digits(), dataclasses.replace(config, recipe=within(recipe)), masks=masks)
    again = finetune(vit(), _head(), digits(), dataclasses.replace(config, checkpoint_activations=True), masks=masks)
    assert linearized(within(recipe)) == recipe
    assert result.trained == plain.trained == tuple(result.tau) and plain.tau is None
    assert all(torch.equal(again.tau[name], delta) and delta.any() for name, delta in result.tau.items())
    assert not has_compact_gradients(config, 1)


def test_the_low_rank_recipe_trains_the_expansion_in_the_outer_factor():
    """Gradients by B at B = 0 are those of the plain recipe, so the first step is the same; query and value move."""
    config = dataclasses.replace(SHORT, steps=1, warmup=0, recipe="linearized+lora", weight_decay=0.0)
    ours = finetune(vit(), _head(), digits(), config)
    plain = finetune(vit(), _head(), digits(), dataclasses.replace(config, recipe="lora"))
    for name in ours.trained:
        torch.testing.assert_close(ours.state[name], plain.state[name], atol=1e-6, rtol=1e-5)
        assert not ours.tau[name][16:32].any() and torch.linalg.matrix_rank(ours.tau[name][:16]) <= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_of_every_library_are_trained_and_evaluated(family):
    encoder = tiny_encoder(family)
    encoder.mean, encoder.std = vit().mean, vit().std
    width = encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size)).shape[-1]
    head = random_head(width, 10, seed=0)
    config = dataclasses.replace(SHORT, steps=1, warmup=0, recipe="linearized+qkvo", batch_size=4)
    result = finetune(encoder, head, digits(), config)
    assert all(delta.any() for delta in result.tau.values())
    some = data.SubsetSplit(digits().splits["val"], torch.arange(4))
    assert len(LinearizedEvaluator(encoder, {"d": head}, {"d": some}, [result.tau])([1.0])["d"].correct) == 4


def _trained():
    """Two tasks of five digits, their heads, and one linearized run for each."""
    tasks = {task.name: task for task in (digits(0, 5), digits(5, 5))}
    heads = {name: _head(5) for name in tasks}
    taus = {name: finetune(vit(), heads[name], task, LONGER).tau for name, task in tasks.items()}
    return tasks, heads, taus


@pytest.fixture(scope="module")
def trained():
    return _trained()


def _splits(tasks, split="val"):
    return {name: task.splits[split] for name, task in tasks.items()}


def _by_hand(tau, scale, head, split):
    """Which images a linearized encoder with scale * tau gets right."""
    encoder = vit()
    lin = ta.linearize(encoder)
    lin.load_tau({name: scale * tau[name] for name in lin.names})
    images, labels = next(data.batches(split, batch_size=len(split), image_size=8, mean=encoder.mean, std=encoder.std))
    return head(lin(images)).argmax(-1) == labels


def test_a_linearized_encoder_is_evaluated_at_sums_of_task_vectors(trained):
    tasks, heads, taus = trained
    evaluator = LinearizedEvaluator(vit(), heads, _splits(tasks), list(taus.values()), batch_size=64)
    both = taus["digits0"] + taus["digits5"]
    for scale in (0.0, 0.4, 1.0):
        found = evaluator([scale, scale])
        for name, evaluation in found.items():
            ours = _by_hand(both, scale, heads[name], tasks[name].splits["val"])
            assert (evaluation.correct != ours).sum() <= 1, "ties aside"
    start = evaluate(vit(), heads["digits0"], tasks["digits0"].splits["val"])
    assert torch.equal(evaluator([0, 0])["digits0"].correct, start.correct)
    assert evaluator([1, 0])["digits0"].accuracy > start.accuracy + 0.2, "training helped"


def test_the_scale_is_searched_on_one_set_of_features(trained, monkeypatch):
    tasks, heads, taus = trained
    encoded = []
    evaluator = LinearizedEvaluator(vit(), heads, _splits(tasks), list(taus.values()), advance=encoded.append)
    reference = {name: evaluator([float(n == name) for n in taus])[name] for name in tasks}
    found = search_scale(evaluator, reference=reference)
    assert encoded == [200, 200] and len(found.points) == 21
    best = max(found.points, key=lambda point: point.score)
    assert found.best.score == best.score and 0 < found.parameters["scale"] <= 1
    again = evaluator([found.parameters["scale"]] * 2)
    assert all(torch.equal(again[name].correct, found.best.evaluations[name].correct) for name in tasks)


def test_a_task_is_forgotten_as_far_as_the_control_task_allows(trained):
    tasks, heads, taus = trained
    evaluator = LinearizedEvaluator(vit(), heads, _splits(tasks), [taus["digits0"]])
    found = search_negation(evaluator, target="digits0", control="digits5", scales=(0.5, 1.0, 2.0))
    start = found.points[0].evaluations
    assert [point.scale for point in found.points] == [0.0, 0.5, 1.0, 2.0]
    assert torch.equal(found.points[3].evaluations["digits0"].correct, evaluator([-2.0])["digits0"].correct)
    assert found.best.evaluations["digits5"].accuracy >= 0.95 * start["digits5"].accuracy - 1e-9
    assert found.best.evaluations["digits0"].accuracy <= start["digits0"].accuracy
    both = LinearizedEvaluator(vit(), heads, _splits(tasks), list(taus.values()))
    with pytest.raises(ArgumentError, match="evaluate must have the target's task vector alone, got 2"):
        search_negation(both, target="digits0", control="digits5")


def test_post_hoc_linearization_is_compared_image_by_image(trained):
    tasks, heads, _ = trained
    config = dataclasses.replace(LONGER, recipe="full")
    states = {name: finetune(vit(), heads[name], task, config).state for name, task in tasks.items()}
    taus = {name: ta.TaskVector.between(vit().state_dict(), state) for name, state in states.items()}
    found = compare_posthoc(vit(), heads, _splits(tasks), taus)
    for name, (ordinary, tangent) in found.items():
        encoder = vit()
        load_state(encoder, states[name])
        assert (evaluate(encoder, heads[name], tasks[name].splits["val"]).correct != ordinary.correct).sum() <= 1
        assert (_by_hand(taus[name], 1.0, heads[name], tasks[name].splits["val"]) != tangent.correct).sum() <= 1
        assert not torch.equal(ordinary.correct, tangent.correct)


def test_learning_rates_are_judged_by_the_linearized_encoder():
    config = dataclasses.replace(LONGER, steps=20)
    found = search_lr(vit(), _head(), digits(), config, lrs=(1e-3, 1e-6))
    evaluator = LinearizedEvaluator(vit(), {"d": _head()}, {"d": digits().splits["val"]}, [found.result.tau])
    assert found.scores[found.lr] == evaluator([1.0])["d"].accuracy and found.lr == 1e-3


def test_snapshots_are_states_on_the_way_and_belong_to_no_checkpoint(tmp_path):
    for recipe in ("full", "linearized", "lora"):
        config = dataclasses.replace(SHORT, recipe=recipe, snapshots=[2, STEPS])
        result = finetune(vit(), _head(), digits(), config)
        assert list(result.snapshots) == [2, STEPS] and config.snapshots == (2, STEPS)
        assert all(torch.equal(result.snapshots[STEPS][name], x) for name, x in result.state.items())
        name = result.trained[-1]
        assert not torch.equal(result.snapshots[2][name], result.state[name])
    with pytest.raises(ArgumentError, match="snapshots must be empty for a run with a checkpoint"):
        finetune(vit(), _head(), digits(), config, checkpoint=tmp_path / "run.resume")
