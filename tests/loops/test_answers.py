"""Rank classification: a sequence-to-sequence model scores the choices of each text."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from taskarith_fast.data import Example, Task, TextSplit
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.calibrate import calibrate
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.evaluate import batches_of, evaluate, load_state
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.fisher import fisher_diagonal
from taskarith_fast.models import give_tokenizer
from tests.loops.texts import text_encoder, text_task
from tests.models.language import SEQ2SEQ, tiny_language_model
from tests.models.words import ANIMALS, THINGS, tokenizer

CONFIG = FinetuneConfig(steps=60, batch_size=8, lr=1e-2, warmup=0, device="cpu")


def questions(count: int = 24) -> Task:
    """What is named: the choices differ from text to text, in number too."""
    words = (*ANIMALS, *THINGS)

    def split(shift: int) -> TextSplit:
        examples, labels = [], []
        for i in range(count):
            right = words[(5 * i + shift) % 12]
            others = [w for w in words if w != right][i % 5 : i % 5 + 1 + i % 3]
            label = i % (len(others) + 1)
            choices = [*others[:label], f"old {right}" if i % 2 else right, *others[label:]]
            examples.append(Example(f"small {right}", tuple(choices)))
            labels.append(label)
        return TextSplit(examples, labels)

    return Task("naming", ("1", "2", "3", "4"), {name: split(s) for s, name in enumerate(("train", "val", "test"))})


@pytest.fixture(scope="module", params=SEQ2SEQ)
def model(request):
    return give_tokenizer(tiny_language_model(request.param), tokenizer())


def scores_one_by_one(model, example) -> list[float]:
    """log p of each choice by a forward pass of its own, token by token, in the library's own words."""
    text, scores = model.tokenizer([Example(example.text, ("cat", "cat"))]), []
    for choice in example.choices:
        answer = model.tokenizer([Example("cat", (choice, choice))])["answers"][0, :1]
        start = torch.full_like(answer[:, :1], model.start_id)
        with torch.no_grad():
            logits = (
                type(model)
                .__mro__[1]
                .forward(model, input_ids=text["input_ids"], decoder_input_ids=torch.cat([start, answer[:, :-1]], 1))
                .logits
            )
        scores.append(float(logits.log_softmax(-1).gather(-1, answer[..., None]).sum()))
    return scores


def test_the_choice_of_the_highest_log_probability_is_the_prediction(model) -> None:
    split = questions().splits["test"]
    found = evaluate(model, nn.Identity(), split, batch_size=7)
    for place, (example, label) in enumerate(zip(*split.get(range(24)), strict=True)):
        scores = scores_one_by_one(model.eval(), example)
        assert bool(found.correct[place]) == (scores.index(max(scores)) == int(label))


@pytest.mark.parametrize("loss", ["cross_entropy", "likelihood"])
def test_fine_tuning_learns_to_answer(model, loss) -> None:
    task, trained = questions(), copy.deepcopy(model)
    result = finetune(model, None, task, dataclasses.replace(CONFIG, loss=loss))
    load_state(trained, result.state)
    before, after = (evaluate(m, nn.Identity(), task.splits["train"]).accuracy for m in (model, trained))
    assert after > before + 0.3


def test_calibration_scores_are_of_summed_log_probabilities(model) -> None:
    """With target "logit", the square of the gradient of log p(answer | text), not normalised over the choices."""
    split = questions(6).splits["val"]
    names = [n for n, _ in model.named_parameters() if n.endswith(("wo.weight", "o.weight"))]
    batches = list(batches_of(model, split, batch_size=3, image_size=None))
    found = fisher_diagonal(model, batches, labels="label", target="logit", names=names)
    one = copy.deepcopy(model).eval()
    own = dict(one.named_parameters())
    total = {name: torch.zeros_like(own[name]) for name in names}
    for example, label in zip(*split.get(range(6)), strict=True):
        score = one(**one.tokenizer([example]))[0, int(label)]
        for name, grad in zip(names, torch.autograd.grad(score, [own[n] for n in names]), strict=True):
            total[name] += grad.square() / 6
    for name in names:
        torch.testing.assert_close(found[name], total[name], rtol=1e-3, atol=1e-3 * float(total[name].max()))


def test_masks_are_made_from_answers(model) -> None:
    batches = [b for b, _ in batches_of(model, two_choices(), batch_size=8, image_size=None)]
    masks = calibrate(model, batches, density=0.1, score="logit", labels="sampled", rounds=2)
    assert 0 < masks.count() <= 0.1 * masks.numel
    assert not any("shared" in name or "lm_head" in name or "relative" in name for name in masks)


def two_choices() -> TextSplit:
    return TextSplit([Example(f"old {a}", (a, b)) for a, b in zip(ANIMALS, THINGS, strict=True)], [0] * 6)


def test_a_model_that_answers_needs_choices_and_an_encoder_no_likelihood() -> None:
    t5 = give_tokenizer(tiny_language_model("t5"), tokenizer())
    with pytest.raises(ArgumentError, match="must come with its choices"):
        evaluate(t5, nn.Identity(), text_task().splits["val"])
    with pytest.raises(ArgumentError, match="loss 'likelihood' is for models that score answers"):
        finetune(text_encoder(), nn.Identity(), text_task(), dataclasses.replace(CONFIG, loss="likelihood"))
    with pytest.raises(ArgumentError, match="loss must be"):
        dataclasses.replace(CONFIG, loss="hinge")
