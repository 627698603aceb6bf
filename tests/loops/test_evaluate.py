import math

import pytest
import torch

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.evaluate import (
    Evaluation,
    StateEvaluator,
    bootstrap_stderr,
    evaluate,
    mean_accuracy,
    normalized_accuracy,
    seeds_stderr,
)
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit


def _evaluation(hits, misses):
    return Evaluation(torch.tensor([True] * hits + [False] * misses))


def test_accuracy_and_binomial_error_are_those_of_the_counts():
    evaluation = _evaluation(30, 10)
    assert evaluation.accuracy == 0.75
    assert evaluation.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 40))


def test_every_task_counts_the_same_in_a_mean():
    ours = {"a": _evaluation(1, 1), "b": _evaluation(10, 0)}
    reference = {"a": _evaluation(2, 0), "b": _evaluation(5, 5)}
    assert mean_accuracy(ours) == 0.75
    assert normalized_accuracy(ours, reference) == pytest.approx((0.5 / 1 + 1 / 0.5) / 2)


def test_evaluate_agrees_with_a_plain_loop_and_leaves_the_mode():
    encoder, split = vit().train(), digits().splits["test"]
    head = random_head(16, 10, seed=0)
    found = evaluate(encoder, head, split, batch_size=64)
    assert encoder.training and head.training and found.correct.shape == (200,)
    assert torch.equal(found.correct, evaluate(encoder, head, split, batch_size=33).correct)
    mean, std = torch.tensor(encoder.mean).view(3, 1, 1), torch.tensor(encoder.std).view(3, 1, 1)
    images, labels = split.get(range(200))
    assert torch.equal(found.correct, head(encoder((images / 255 - mean) / std)).argmax(1) == labels)


def test_a_state_is_evaluated_as_if_it_were_loaded():
    task, heads = digits(), {"digits0": random_head(16, 10, seed=0)}
    evaluator = StateEvaluator(vit(0), heads, {"digits0": task.splits["val"]})
    found = evaluator(vit(1).state_dict())["digits0"]
    assert torch.equal(found.correct, evaluate(vit(1), heads["digits0"], task.splits["val"]).correct)


def test_a_state_of_another_model_is_refused():
    evaluator = StateEvaluator(vit(), {}, {})
    state = vit().state_dict()
    with pytest.raises(CheckpointError, match=r"class_embedding: state must have shape .*16.* as the encoder"):
        evaluator(state | {"class_embedding": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"extra: state must have the .* but has it too many"):
        evaluator(state | {"extra": torch.zeros(3)})
    del state["class_embedding"]
    with pytest.raises(CheckpointError, match=r"class_embedding: state must have the .* but lacks it"):
        evaluator(state)


def test_bootstrap_error_of_a_mean_is_that_of_independent_tasks():
    tasks = {"a": _evaluation(60, 40), "b": _evaluation(160, 40)}
    expected = math.sqrt(tasks["a"].stderr ** 2 + tasks["b"].stderr ** 2) / 2
    assert bootstrap_stderr(tasks, resamples=20000) == pytest.approx(expected, rel=0.03)
    assert bootstrap_stderr(tasks) == bootstrap_stderr(tasks)


def test_bootstrap_error_of_a_ratio_pairs_the_images():
    ours = {"a": _evaluation(60, 40)}
    assert bootstrap_stderr(ours, ours) == 0
    generator = torch.Generator().manual_seed(0)
    theirs = {"a": Evaluation(torch.rand(100, generator=generator) < 0.7)}
    rows = torch.randint(0, 100, (20000, 100), generator=generator)
    by_hand = ours["a"].correct[rows].double().mean(1) / theirs["a"].correct[rows].double().mean(1)
    assert bootstrap_stderr(ours, theirs, resamples=20000) == pytest.approx(float(by_hand.std()), rel=0.03)


def test_error_over_seeds_is_the_sample_deviation_over_its_root():
    assert seeds_stderr([0.7, 0.8, 0.9]) == pytest.approx(0.1 / math.sqrt(3))
    with pytest.raises(ArgumentError, match="values must come from at least 2 seeds, got 1"):
        seeds_stderr([0.7])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({}, "reference must have every task evaluated, but lacks 'a'"),
        ({"a": _evaluation(1, 2)}, r"reference\['a'\] must be of the same 2 images, got 3"),
        ({"a": _evaluation(0, 2)}, r"reference\['a'\] must have an accuracy above 0"),
    ],
)
def test_an_unfit_reference_is_refused(reference, message):
    with pytest.raises(ArgumentError, match=message):
        normalized_accuracy({"a": _evaluation(1, 1)}, reference)
