"""Activation checkpointing: the same gradients from less memory, for every family."""

import copy

import pytest
import torch
from torch import nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.blocks import checkpoint_activations, transformer_blocks
from tests.models.tiny import FAMILIES, tiny_encoder


def _gradients(model, images):
    """Gradients of the squared features, and the values that the forward pass keeps, block inputs aside."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(images).square().sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_bit_for_bit_and_less_is_kept(family):
    torch.manual_seed(0)
    model = tiny_encoder(family).train()
    images = torch.randn(3, 3, model.image_size, model.image_size)
    checkpointed = copy.deepcopy(model)
    checkpoint_activations(checkpointed)
    plain, kept = _gradients(model, images)
    ours, ours_kept = _gradients(checkpointed, images)
    assert ours.keys() == plain.keys() and all(torch.equal(ours[name], plain[name]) for name in plain)
    assert ours_kept < 0.6 * kept


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_hold_all_attention_weights(family):
    model = tiny_encoder(family)
    blocks = transformer_blocks(model)
    assert len(blocks) == (1 if family == "open_clip" else 2)
    inside = {id(p) for block in blocks for p in block.parameters()}
    names = [name for name, p in model.named_parameters() if id(p) not in inside]
    assert names and not any("attn" in name or "attention" in name for name in names)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ArgumentError, match="model must hold its blocks in a list named resblocks"):
        transformer_blocks(nn.Linear(3, 3))
