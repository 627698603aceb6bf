"""The memory plan: its parts, what it refuses, and the memory that runs then take."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.language_memory import NoiseTokenizer
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops import memory_plan
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.memory_limit import check_memory
from taskarith_fast.loops.memory_plan import plan_finetune
from taskarith_fast.loops.recipes import linearized
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from taskarith_fast.models.activations import Kept, measure_kept
from tests.loops.tiny import Pixels, vit
from tests.models.language import texts, tiny_language_model

ROOT = Path(__file__).parents[2]
RUN = FinetuneConfig(batch_size=16, device="cpu")
KEPT = Kept(*[(0, 1)] * 5)


def _plan(masks=None, **changes):
    return plan_finetune(vit(), random_head(16, 10, seed=0), dataclasses.replace(RUN, **changes), masks)


def _bytes(module):
    return sum(4 * p.numel() for p in module.parameters())


def test_weights_gradients_and_state_follow_from_the_shapes():
    plan, encoder, head = _plan(), _bytes(vit()), _bytes(random_head(16, 10, seed=0))
    assert (plan.weights, plan.gradients, plan.optimizer) == (2 * encoder + head, encoder, 2 * encoder)
    with_head = _plan(train_head=True)
    assert with_head.gradients == encoder + head and with_head.optimizer == 2 * (encoder + head)
    weights = _bytes(vit().transformer) - sum(4 * p.numel() for p in vit().transformer.parameters() if p.dim() < 2)
    assert _plan(recipe="p3").gradients == weights


def test_masks_need_state_for_what_they_select_and_compact_gradients_too():
    masks = Masks.pack({name: torch.rand(p.shape) < 0.1 for name, p in vit().named_parameters() if p.dim() == 2})
    dense, compact = (_plan(masks, recipe="masked", clip_over=over) for over in ("all", "selected"))
    assert dense.optimizer == compact.optimizer < 0.2 * _plan().optimizer
    assert compact.gradients == 4 * masks.count() < 0.2 * dense.gradients


def test_linearized_recipes_keep_what_the_plain_ones_do_and_have_a_tangent_beside_each_weight():
    for recipe in ("full", "qkvo"):
        plain, ours = _plan(recipe=recipe), _plan(recipe=linearized(recipe))
        assert ours.gradients == plain.gradients and ours.optimizer == plain.optimizer
        assert ours.weights == plain.weights + plain.gradients
        assert 0.9 * plain.activations < ours.activations < 1.1 * plain.activations
    checkpointed = _plan(recipe="linearized", checkpoint_activations=True)
    assert checkpointed.activations < 0.8 * _plan(recipe="linearized").activations


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing_and_frozen_weights():
    once, twice = _plan(), _plan(batch_size=32)
    assert 1.9 * once.activations < twice.activations <= 2 * once.activations
    assert _plan(checkpoint_activations=True).activations < 0.8 * once.activations
    assert _plan(recipe="bitfit").activations < 0.8 * once.activations
    assert _plan(batch_size=8, accumulation=2).activations < once.activations


def test_kept_bytes_are_those_of_the_tensors_that_autograd_saves():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2, bias=False))
    kept = measure_kept(model, lambda images: model(torch.zeros(images, 3)))
    # The input, and the output of the ReLU, which is the input of the next layer: 3 + 5 floats an image.
    assert kept.bytes(7, checkpointed=False) == 7 * 4 * (3 + 5)
    model[0].requires_grad_(False)
    assert measure_kept(model, lambda n: model(torch.zeros(n, 3))).bytes(7, checkpointed=False) == 7 * 4 * 5


def test_planning_leaves_encoder_head_and_random_numbers_alone():
    encoder, head = vit(), random_head(16, 10, seed=0)
    state = torch.get_rng_state()
    plan_finetune(encoder, head, RUN)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, vit().state_dict()[name]) for name, tensor in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())


def test_an_encoder_without_blocks_can_be_planned():
    class Dense(Pixels):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(64))

        def forward(self, images):
            return super().forward(images) * self.scale

    assert plan_finetune(Dense(), random_head(64, 10, seed=0), RUN).peak > 0


def test_a_run_that_does_not_fit_is_refused_with_what_would():
    plan = _plan(batch_size=128)
    check_memory(plan, plan.peak)
    with pytest.raises(ArgumentError, match=r"max_memory must be at least 2.1 MB for this run, got 2.1 MB") as refused:
        check_memory(plan, plan.peak - 1)
    hints = ("with checkpoint_activations=true; ", "or batch_size=64 and accumulation=2; ", "or recipe=qkvo")
    assert all(hint in str(refused.value) for hint in hints)
    small = _plan(batch_size=1, accumulation=128, checkpoint_activations=True)
    with pytest.raises(
        ArgumentError, match=r"it would fit with checkpoint_activations=true and batch_size=\d+ and acc"
    ):
        check_memory(plan, small.peak)
    with pytest.raises(ArgumentError, match="no smaller batch or recipe fits either"):
        check_memory(plan, 1000)


def test_a_masked_run_that_forms_dense_gradients_is_told_how_not_to():
    masks = Masks.pack({name: torch.rand(p.shape) < 0.1 for name, p in vit().named_parameters() if p.dim() == 2})
    plan = _plan(masks, recipe="talos", batch_size=1, checkpoint_activations=True)
    with pytest.raises(ArgumentError, match="it would fit with clip_over=selected"):
        check_memory(plan, plan.peak - 1)


def test_the_lines_name_every_part_and_the_peak():
    text = "\n".join(_plan().lines())
    for word in ("recipe full", "16 images a pass", "weights", "gradients", "optimizer", "activations", "peak"):
        assert word in text


def test_steps_in_the_backward_pass_hold_one_gradient_and_a_run_in_place_one_model():
    masks = Masks.pack({name: torch.rand(p.shape) < 0.1 for name, p in vit().named_parameters() if p.dim() == 2})
    config = dataclasses.replace(RUN, recipe="masked", clip=None)
    arguments = (vit(), random_head(16, 10, seed=0))
    after = plan_finetune(*arguments, config, masks)
    ours = plan_finetune(*arguments, dataclasses.replace(config, step_in_backward=True), masks, in_place=True)
    assert ours.gradients == 4 * max(masks.count(name) for name in masks) < after.gradients
    assert ours.weights == after.weights - _bytes(vit())
    assert (ours.optimizer, ours.activations) == (after.optimizer, after.activations)


@pytest.mark.parametrize("name", ["bert", "t5", "t5 gated"])
def test_language_models_are_planned_by_their_longest_text_without_a_copy_of_their_weights(name, monkeypatch):
    model = tiny_language_model(name)
    model.tokenizer = NoiseTokenizer(model.vocab_size, answers=name != "bert")
    model.tokenizer.max_length = model.max_length
    head = random_head(24, 4, seed=0) if name == "bert" else None
    places = {p.data_ptr() for p in model.parameters()}
    seen = []
    monkeypatch.setattr(memory_plan, "measure_kept", lambda module, _: seen.append(module) or KEPT)
    plan = plan_finetune(model, head, RUN, in_place=True)
    tied = 0 if name == "bert" else 4 * model.shared.weight.numel()  # while the gradients of two uses are added
    assert plan.gradients == _bytes(model) + tied and plan.optimizer == 2 * _bytes(model)
    assert {p.data_ptr() for p in seen[0].encoder.parameters()} == places
    monkeypatch.undo()
    short, long = (plan_finetune(model, head, RUN, sample=texts(name, 1, length)) for length in (5, 10))
    assert short.activations < long.activations < plan_finetune(model, head, RUN).activations
    assert "16 texts a pass" in "\n".join(plan.lines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((192, 6, 64), {}),
        ((192, 6, 64), {"checkpoint_activations": True}),
        ((192, 6, 64), {"recipe": "qkvo"}),
        ((384, 4, 16), {"accumulation": 3}),
        ((768, 4, 2), {}),
        ((768, 4, 2), {"recipe": "masked"}),
        ((768, 4, 8), {"recipe": "lora"}),
        ((192, 6, 64), {"recipe": "linearized"}),
        ((192, 6, 64), {"recipe": "linearized", "checkpoint_activations": True}),
        ((768, 4, 2), {"recipe": "linearized"}),
        ((768, 4, 2), {"recipe": "linearized+masked"}),
        ((768, 4, 8), {"recipe": "linearized+lora"}),
    ],
)
def test_the_peak_of_a_run_is_the_planned_one_within_a_quarter(shape, config):
    planned, measured = _planned_and_measured("vit", shape, config)
    assert planned == pytest.approx(measured, rel=0.25)


_LEAN = {"recipe": "masked", "clip": None, "step_in_backward": True, "in_place": True}


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"in_place": True}, {}, _LEAN], ids=["full", "full, a copy", "sparse, in backward"])
@pytest.mark.parametrize(("family", "shape"), [("bert", (768, 6, 1)), ("t5", (768, 4, 1))])
def test_the_peak_of_a_language_model_is_the_planned_one_within_a_tenth(family, shape, config):
    planned, measured = _planned_and_measured(family, shape, config)
    assert planned == pytest.approx(measured, rel=0.1)


def _planned_and_measured(family, shape, config):
    words = [sys.executable, "-m", "tests.loops.peak_memory", family, *map(str, shape), json.dumps(config)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return map(int, done.stdout.split())
