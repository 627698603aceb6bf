"""Fine-tuning with the least memory: the encoder itself, stepped in the backward pass."""

import dataclasses

import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

SPARSE = FinetuneConfig(steps=4, batch_size=16, lr=1e-3, warmup=0, clip=None, recipe="masked", device="cpu")
IN_BACKWARD = dataclasses.replace(SPARSE, step_in_backward=True)


def _masks(density=0.2):
    g = torch.Generator().manual_seed(0)
    return Masks.pack({name: torch.rand(p.shape, generator=g) < density for name, p in vit().named_parameters()})


def _run(config, encoder=None, **options):
    encoder = vit() if encoder is None else encoder
    return finetune(encoder, random_head(16, 10, seed=0), digits(), config, masks=_masks(), **options)


def test_steps_in_the_backward_pass_end_in_the_same_bytes():
    after, ours = _run(SPARSE), _run(IN_BACKWARD)
    assert ours.history == after.history
    assert all(torch.equal(ours.state[name], after.state[name]) for name in after.state)


def test_a_run_in_place_trains_the_encoder_itself():
    encoder = vit()
    ours, copied = _run(IN_BACKWARD, encoder, in_place=True), _run(IN_BACKWARD)
    assert all(torch.equal(tensor, copied.state[name]) for name, tensor in encoder.state_dict().items())
    shared = [ours.state[name].data_ptr() == p.data_ptr() for name, p in encoder.named_parameters()]
    assert all(shared), "the result must not be another copy"
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": 1.0}, "clip must be None for step_in_backward, got 1.0"),
        ({"accumulation": 2}, "accumulation must be 1 for step_in_backward, got 2"),
        ({"recipe": "full"}, "step_in_backward is for the recipes talos, lota, masked only, got 'full'"),
        ({"recipe": "linearized+masked"}, "only, got 'linearized"),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(IN_BACKWARD, **changes)
