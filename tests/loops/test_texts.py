"""The loops on tasks of texts: what they do with images, they do with dicts of tensors."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch

from taskarith_fast.analysis.results import Results
from taskarith_fast.data import Task, TextSplit
from taskarith_fast.errors import ArgumentError, DataError
from taskarith_fast.loops.adamerge import adamerge
from taskarith_fast.loops.calibrate import calibrate
from taskarith_fast.loops.config import FinetuneConfig, ProbeConfig
from taskarith_fast.loops.demo import run_study
from taskarith_fast.loops.demo_config import TEXT_PRESETS
from taskarith_fast.loops.evaluate import batches_of, evaluate, load_state
from taskarith_fast.loops.finetune import finetune, finetune_joint
from taskarith_fast.loops.fisher import fisher_diagonal
from taskarith_fast.loops.memory_plan import plan_finetune
from taskarith_fast.loops.probe import probe
from tests.loops.texts import text_encoder, text_task
from tests.loops.tiny import digits, vit

CONFIG = FinetuneConfig(steps=4, batch_size=8, lr=1e-2, warmup=0, device="cpu")
PROBE = ProbeConfig(solver="lbfgs", cs=(0.05,), device="cpu")


@pytest.fixture(scope="module")
def encoder():
    return text_encoder()


@pytest.fixture(scope="module")
def head(encoder):
    return probe(encoder, text_task(), PROBE).head


def batches(encoder, split="val"):
    return list(batches_of(encoder, text_task().splits[split], batch_size=8, image_size=None))


def test_fine_tuning_learns_which_word_says_which_class(encoder, head) -> None:
    model, split = copy.deepcopy(encoder), text_task().splits["test"]
    before = evaluate(model, head, split)
    result = finetune(encoder, head, text_task(), dataclasses.replace(CONFIG, steps=40))
    load_state(model, result.state)
    after = evaluate(model, head, split)
    assert after.accuracy >= max(0.9, before.accuracy)
    assert sum(result.history["loss"][-5:]) < 0.5 * sum(result.history["loss"][:5])
    one_by_one = evaluate(model, head, split, batch_size=1)
    assert torch.equal(after.correct, one_by_one.correct), "padding must not change what is predicted"


def test_padding_does_not_change_features(encoder) -> None:
    short, long = "big cat", "small old big new small old cat"
    encoder.eval()
    with torch.no_grad():
        alone, beside = encoder(**encoder.tokenizer([short])), encoder(**encoder.tokenizer([short, long]))[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", ["full", "qkvo", "bitfit", "lora", "linearized"])
def test_every_recipe_trains_texts(encoder, head, recipe) -> None:
    result = finetune(encoder, head, text_task(), dataclasses.replace(CONFIG, recipe=recipe, steps=30))
    again = finetune(encoder, head, text_task(), dataclasses.replace(CONFIG, recipe=recipe, steps=30))
    assert all(torch.equal(result.state[name], again.state[name]) for name in result.state)
    start = encoder.state_dict()
    moved = {name for name in start if not torch.equal(start[name], result.state[name])}
    assert moved and moved <= set(result.trained)
    assert sum(result.history["loss"][-5:]) < sum(result.history["loss"][:5])


@pytest.mark.parametrize("method", ["talos", "lota"])
def test_sparse_recipes_change_what_was_selected_alone(encoder, head, method) -> None:
    full = finetune(encoder, head, text_task(), CONFIG)
    options = {"batches": batches(encoder), "head": head} if method == "talos" else {"finetuned": full.state}
    masks = calibrate(encoder, method=method, density=0.1, **options)
    assert not any("embeddings.word" in name for name in masks)
    result = finetune(encoder, head, text_task(), dataclasses.replace(CONFIG, recipe=method), masks=masks)
    start = encoder.state_dict()
    for name in start:
        changed = start[name] != result.state[name]
        assert not (changed & ~masks[name]).any() if name in masks else not changed.any()
    assert any(not torch.equal(start[name], result.state[name]) for name in masks)


def test_fisher_diagonals_are_those_of_single_texts(encoder, head) -> None:
    names = [name for name, _ in encoder.named_parameters() if ".dense." in name]
    found = fisher_diagonal(encoder, batches(encoder), labels="label", head=head, names=names)
    model = copy.deepcopy(encoder).eval()
    own = dict(model.named_parameters())
    total = {name: torch.zeros_like(own[name]) for name in names}
    for example, label in zip(*text_task().splits["val"].get(range(48)), strict=True):
        logits = head(model(**encoder.tokenizer([example])))
        grads = torch.autograd.grad(logits.log_softmax(-1)[0, label], [own[name] for name in names])
        for name, grad in zip(names, grads, strict=True):
            total[name] += grad.square() / 48
    for name in names:
        torch.testing.assert_close(found[name], total[name], rtol=1e-3, atol=1e-3 * float(total[name].max()))


def test_joint_training_pads_the_tasks_to_one_length(encoder, head) -> None:
    tasks = {name: text_task(name) for name in ("animals", "things")}
    heads = {name: probe(encoder, task, PROBE).head for name, task in tasks.items()}
    result = finetune_joint(encoder, heads, tasks, dataclasses.replace(CONFIG, steps=20))
    assert result.history["loss"][-1] < result.history["loss"][0]


def test_coefficients_are_learned_on_texts(encoder, head) -> None:
    tuned = finetune(encoder, head, text_task(), CONFIG).state
    (whole,) = batches_of(encoder, text_task().splits["test"], batch_size=48, image_size=None)
    result = adamerge(copy.deepcopy(encoder), encoder.state_dict(), [tuned], {"animals": head},
                      {"animals": [whole]}, steps=10, lr=0.02)  # fmt: skip
    assert len(result.entropy["animals"]) == 10 and result.entropy["animals"][-1] < result.entropy["animals"][0]


def test_a_memory_plan_counts_the_longest_text(encoder, head) -> None:
    small = plan_finetune(encoder, head, CONFIG)
    assert 0 < small.activations < plan_finetune(encoder, head, dataclasses.replace(CONFIG, batch_size=16)).activations


def test_texts_and_images_are_not_mixed_up(encoder, head) -> None:
    with pytest.raises(DataError, match="must be one of texts"):
        evaluate(encoder, head, digits().splits["val"])
    with pytest.raises(ArgumentError, match="encoder must have a tokenizer for a task of texts"):
        evaluate(vit(), head, text_task().splits["val"])
    with pytest.raises(ArgumentError, match="augment and image_size are for images"):
        finetune(encoder, head, text_task(), dataclasses.replace(CONFIG, augment=True))


def test_a_text_over_the_limit_stops_a_run_in_one_line(encoder, head) -> None:
    long = TextSplit(["cat " * 40] * 3, [0, 0, 0])
    task = Task("long", ("cat", "dog", "cow"), {"train": long, "val": long, "test": long})
    with pytest.raises(ArgumentError, match="at most 20 tokens, got 42") as error:
        finetune(encoder, head, task, CONFIG)
    assert "\n" not in str(error.value)


def test_a_study_of_texts_has_every_recipe_and_a_page(tmp_path) -> None:
    tasks = {name: text_task(name) for name in ("animals", "things")}
    recipes = {
        name: dataclasses.replace(CONFIG, recipe=name)
        for name in ("full", "qkvo", "talos", "lota", "linearized", "lora")
    }
    config = dataclasses.replace(
        TEXT_PRESETS["quick"], tasks=tuple(tasks), recipes=recipes, probe=PROBE, task_arithmetic_scales=(0.0, 0.5),
        ties_scales=(0.0, 1.0), cart_rank_ratios=(0.25,), cart_scales=(1.0,), negation_scales=(0.5,), mask_density=0.2,
        sensitivity=("full",), sensitivity_images=16, sensitivity_points=1, post_hoc=True, extra_rows=True,
    )  # fmt: skip
    page = run_study(config, text_encoder(), tasks, tmp_path).read_text()
    results = Results.load(tmp_path / "results.json")
    assert list(results.recipes) == list(recipes)
    for recipe in recipes:
        assert results.row("individual", recipe) and results.row("task_arithmetic", recipe)
    assert {(line.recipe, line.target) for line in results.negation} >= {(r, t) for r in recipes for t in tasks}
    assert "One text encoder for 2 tasks" in page and "test texts" in page
    visible = re.sub(r"<style>.*?</style>|<[^>]*>|<details>.*?</details>", " ", page, flags=re.S)
    assert not re.search(r"\bimages?\b", visible.split("Exact configuration")[0])
    assert [(e.task, e.label) for e in results.examples if e.text.split()[-1] != e.label] == []
    assert results.samples == "texts" and len(results.examples) == 6
