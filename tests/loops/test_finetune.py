import dataclasses

import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.evaluate import evaluate, load_state
from taskarith_fast.loops.finetune import DivergedError, finetune, finetune_joint
from taskarith_fast.loops.schedule import learning_rate
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

SHORT = FinetuneConfig(steps=6, batch_size=16, lr=1e-3, warmup=2, device="cpu")


def _head(classes=10):
    return random_head(16, classes, seed=0)


def _same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_encoder_and_head_handed_in_stay_as_they_are_and_the_frozen_head_comes_back_equal():
    encoder, head = vit(), _head()
    result = finetune(encoder, head, digits(), SHORT)
    assert _same(encoder.state_dict(), vit().state_dict()) and _same(head.state_dict(), _head().state_dict())
    assert _same(result.head_state, head.state_dict())
    assert all(p.grad is None for p in [*encoder.parameters(), *head.parameters()])


def test_full_training_changes_every_tensor_that_has_a_gradient():
    result = finetune(vit(), _head(), digits(), SHORT)
    before = vit().state_dict()
    assert result.trained == tuple(before) and not result.state["ln_post.weight"].requires_grad
    assert not any(torch.equal(result.state[name], before[name]) for name in before)


@pytest.mark.parametrize("recipe", ["qkvo", "p2", "p4", "bitfit"])
def test_only_the_tensors_selected_change(recipe):
    result = finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, recipe=recipe))
    before = vit().state_dict()
    changed = {name for name in before if not torch.equal(result.state[name], before[name])}
    assert changed == set(result.trained)
    if recipe == "qkvo":
        parts = ("attn.in_proj_weight", "attn.out_proj.weight")
        assert changed == {f"transformer.resblocks.{i}.{part}" for i in range(2) for part in parts}


def test_equal_seeds_give_equal_bytes_whatever_else_draws_random_numbers():
    first = finetune(vit(), _head(), digits(), SHORT)
    torch.rand(7)
    drawn = torch.get_rng_state()
    second = finetune(vit(), _head(), digits(), SHORT)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert _same(first.state, second.state) and first.history == second.history
    assert not _same(first.state, finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, seed=1)).state)


def test_the_loop_is_adamw_with_clipping_and_the_schedule():
    from taskarith_fast import data

    result = finetune(vit(), _head(), digits(), SHORT)
    model, head = vit(), _head()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=True)
    batches = data.batches(
        digits().splits["train"], batch_size=16, image_size=8, mean=model.mean, std=model.std, shuffle=True
    )
    for step, (images, labels) in zip(range(6), batches, strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps=6, lr=1e-3, warmup=2)
        loss = torch.nn.functional.cross_entropy(head(model(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert result.history["loss"][step] == pytest.approx(loss.item(), rel=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(result.state[name], tensor, atol=1e-6, rtol=1e-5)


def test_accumulated_passes_make_the_step_of_the_whole_batch():
    half = dataclasses.replace(SHORT, batch_size=8, accumulation=2)
    # The first 16 images of the epoch, as 2 x 8 or 1 x 16: the mean gradient is the same.
    whole = finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, steps=1, warmup=0))
    split = finetune(vit(), _head(), digits(), dataclasses.replace(half, steps=1, warmup=0))
    assert split.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-5)


def test_training_learns_and_a_trained_head_is_returned():
    config = FinetuneConfig(epochs=6, batch_size=32, lr=3e-3, warmup=10, train_head=True, device="cpu")
    result = finetune(vit(), None, digits(), config)
    encoder, head = vit(), _head()
    load_state(encoder, result.state)
    head.load_state_dict(result.head_state)
    assert evaluate(encoder, head, digits().splits["val"]).accuracy > 0.6
    assert len(result.history["loss"]) == 6 * 13


def test_bfloat16_follows_float32_and_keeps_float32_weights():
    config = dataclasses.replace(SHORT, precision="bfloat16")
    result = finetune(vit(), _head(), digits(), config)
    assert all(tensor.dtype == torch.float32 for tensor in result.state.values())
    full = finetune(vit(), _head(), digits(), SHORT)
    assert result.history["loss"] == pytest.approx(full.history["loss"], rel=0.05)


def test_joint_training_of_one_task_is_that_of_the_task():
    alone = finetune(vit(), _head(), digits(), SHORT)
    joint = finetune_joint(vit(), {"digits0": _head()}, {"digits0": digits()}, SHORT)
    assert _same(alone.state, joint.state)


def test_joint_training_gives_every_task_its_share():
    tasks = {task.name: task for task in (digits(0, 5), digits(5, 5))}
    heads = {name: _head(5) for name in tasks}
    config = FinetuneConfig(epochs=6, batch_size=32, lr=3e-3, warmup=10, train_head=True, device="cpu")
    result = finetune_joint(vit(), heads, tasks, config)
    assert len(result.history["loss"]) == 6 * 25
    encoder = vit()
    load_state(encoder, result.state)
    for name, task in tasks.items():
        heads[name].load_state_dict(result.head_states[name])
        assert evaluate(encoder, heads[name], task.splits["val"]).accuracy > 0.6


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ArgumentError, match=r"head must be given unless config.train_head"):
        finetune(vit(), None, digits(), SHORT)
    with pytest.raises(ArgumentError, match="heads must have one for every task, but lacks digits0"):
        finetune_joint(vit(), {}, {"digits0": digits()}, SHORT)
    with pytest.raises(ArgumentError, match="tasks must number from 1 to batch_size=16, got 0"):
        finetune_joint(vit(), {}, {}, SHORT)


def test_divergence_is_an_error():
    with pytest.raises(DivergedError, match=r"try an lr below 1e\+30"):
        finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, lr=1e30))
