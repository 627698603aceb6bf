"""Answers of edited encoders against fresh models with weights added by the book."""

import pytest
import torch

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.edits import EncoderEdits, LinearizedEdits
from taskarith_fast.loops.stem import Stem, untouched_blocks
from taskarith_fast.models.blocks import transformer_blocks
from taskarith_fast.sparse_task_vector import SparseTaskVector
from taskarith_fast.tangent import linearize
from taskarith_fast.task_vector import TaskVector
from tests.loops import edited
from tests.loops.tiny import vit
from tests.models.tiny import FAMILIES, tiny_encoder

POINTS = [(0.0, 0.0), (0.5, 0.0), (-1.0, 2.0), (0.5, 0.0), (1.5, -0.25)]


def _late(name):
    return "resblocks.1." in name


@pytest.mark.parametrize("which", [lambda name: True, _late], ids=["every tensor", "the last block"])
@pytest.mark.parametrize("form", [lambda b, s: s, TaskVector.between, SparseTaskVector.between])
def test_features_are_those_of_a_fresh_model_at_every_point(form, which):
    base = edited.base()
    states = [edited.moved(base, seed, which) for seed in (1, 2)]
    splits = edited.splits()
    edits = EncoderEdits(vit(5), base, [form(base, s) for s in states], splits, edited.heads(), batch_size=16)
    for point in POINTS:
        for task in edited.TASKS:
            expected = edited.features(base, states, point, splits[task])
            torch.testing.assert_close(edits.features(point, task), expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(edits.labels(task), splits[task].get(range(len(splits[task])))[1])


def test_logits_are_the_heads_and_the_encoder_is_left_as_it_was():
    base, splits, heads = edited.base(), edited.splits(), edited.heads(normalize=True)
    state, encoder = edited.moved(base, 1), vit(7).train()
    edits = EncoderEdits(encoder, base, [state], splits, heads)
    expected = heads["b"](edited.features(base, [state], (0.7,), splits["b"]))
    torch.testing.assert_close(edits.logits((0.7,), "b"), expected, rtol=1e-4, atol=1e-5)
    assert encoder.training
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in vit(7).state_dict().items())


def test_linearized_edits_are_a_linearized_model_at_the_summed_task_vector():
    base, splits = edited.base(), edited.splits()
    states = [edited.moved(base, 1, size=0.1), edited.moved(base, 2, _late, size=0.1)]
    edits = LinearizedEdits(vit(5), base, states, splits, edited.heads(), batch_size=16)
    model = vit()
    lin = linearize(model)
    for point in POINTS:
        lin.load_tau({n: sum(s * (m[n] - t) for s, m in zip(point, states, strict=True)) for n, t in base.items()})
        with torch.no_grad():
            expected = lin(edited.pixels(splits["a"]))
        torch.testing.assert_close(edits.features(point, "a"), expected, rtol=1e-4, atol=1e-4)


def test_blocks_that_no_task_vector_reaches_run_once(monkeypatch):
    base, splits, encoder = edited.base(), edited.splits(), vit()
    states = [edited.moved(base, seed, _late) for seed in (1, 2)]
    edits = EncoderEdits(encoder, base, states, splits, edited.heads(), batch_size=20)
    first, second = transformer_blocks(edits.encoder)
    calls = []
    forward = type(first.attn).forward
    monkeypatch.setattr(type(first.attn), "forward", lambda self, x: calls.append(self) or forward(self, x))
    for point in POINTS:
        edits.features(point, "a")
    # Two batches: each block runs on the first point; the second point's first batch is checked against a whole pass.
    assert calls.count(first.attn) == 2 + 1
    assert calls.count(second.attn) == 2 * len(POINTS) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_outputs_give_the_same_bits_in_every_library(family):
    encoder = tiny_encoder(family).eval()
    blocks = transformer_blocks(encoder)
    last = {id(p) for p in blocks[-1].parameters()}
    names = [name for name, p in encoder.named_parameters() if id(p) in last]
    g = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size, generator=g)
    stem = Stem(encoder, names, limit=1 << 20)
    assert len(stem.blocks) == len(blocks) - 1
    with torch.no_grad():
        for scale in (0.0, 0.1, 0.2):
            for p in blocks[-1].parameters():
                p.add_(scale * torch.randn(p.shape, generator=g))
            assert torch.equal(stem.run("x", lambda: encoder(images)), encoder(images))
    assert len(stem.blocks) == len(blocks) - 1  # the check of the first replay did not give it up


def test_a_model_whose_early_part_moves_is_run_whole():
    encoder = vit()
    assert untouched_blocks(encoder, ["positional_embedding", "transformer.resblocks.1.ln_1.bias"]) == []
    assert len(untouched_blocks(encoder, ["transformer.resblocks.1.ln_1.bias"])) == 1
    assert len(untouched_blocks(encoder, ["ln_post.bias"])) == 2
    assert untouched_blocks(encoder, ["transformer.resblocks.0.ln_1.bias"]) == []
    assert untouched_blocks(torch.nn.Linear(2, 2), []) == []


def test_an_early_part_that_is_registered_late_is_found_out():
    encoder = vit().eval()
    encoder.shift = torch.nn.Parameter(torch.zeros(16))  # registered after the blocks, used before them
    embed = encoder.embed
    encoder.embed = lambda images: embed(images) + encoder.shift
    stem = Stem(encoder, ["shift"], limit=1 << 20)
    images = edited.pixels(edited.splits()["a"])
    with torch.no_grad():
        for _ in range(3):
            encoder.shift.add_(0.5)
            assert torch.equal(stem.run(0, lambda: encoder(images)), encoder(images))
    assert stem.blocks == []


def test_no_more_is_kept_than_the_limit():
    encoder, images = vit().eval(), edited.pixels(edited.splits()["a"])
    stem = Stem(encoder, ["ln_post.bias"], limit=100)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(stem.run(0, lambda: encoder(images)), encoder(images))
    assert not stem._kept


@pytest.mark.parametrize("kind", [EncoderEdits, LinearizedEdits])
def test_mistakes_are_named(kind):
    base, splits, heads = edited.base(), edited.splits(), edited.heads()
    state = edited.moved(base, 1)
    with pytest.raises(ArgumentError, match="at least one fine-tuned state"):
        kind(vit(), base, [], splits, heads)
    with pytest.raises(ArgumentError, match="heads must have every task of splits, but lacks 'b'"):
        kind(vit(), base, [state], splits, {"a": heads["a"]})
    with pytest.raises(CheckpointError, match=r"vectors\[1\]: lacks the tensor, which base has: ln_post.bias"):
        kind(vit(), base, [state, {n: t for n, t in state.items() if n != "ln_post.bias"}], splits, heads)
    with pytest.raises(CheckpointError, match=r"vectors\[0\]: ln_post.bias must have shape \[16\] as base, got \[2\]"):
        kind(vit(), base, [state | {"ln_post.bias": torch.zeros(2)}], splits, heads)
    with pytest.raises(CheckpointError, match=r"has the tensor, which base lacks: x"):
        kind(vit(), base, [TaskVector({"x": torch.zeros(2)})], splits, heads)
    with pytest.raises(ArgumentError, match="one scale for each of 1 task vectors, got 2"):
        kind(vit(), base, [state], splits, heads).features((1.0, 2.0), "a")
