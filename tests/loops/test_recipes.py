"""Recipes: what is trained, and that nothing else changes."""

import dataclasses

import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.recipes import RECIPES, has_compact_gradients, prepare
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

SHORT = FinetuneConfig(steps=4, batch_size=16, lr=1e-3, warmup=2, device="cpu")
LORA = dataclasses.replace(SHORT, recipe="lora", lora_rank=4, lora_alpha=8.0)


def _head():
    return random_head(16, 10, seed=0)


def test_bitfit_trains_every_bias_and_nothing_else():
    names = prepare(vit(), dataclasses.replace(SHORT, recipe="bitfit")).names
    assert names == tuple(name for name in vit().state_dict() if name.endswith("bias"))
    assert "conv1.bias" in names and "transformer.resblocks.1.attn.in_proj_bias" in names and "ln_post.bias" in names


def test_low_rank_training_changes_query_and_value_rows_by_the_rank():
    result = finetune(vit(), _head(), digits(), LORA)
    before = vit().state_dict()
    changed = {name for name in before if not torch.equal(result.state[name], before[name])}
    assert changed == set(result.trained) == {f"transformer.resblocks.{i}.attn.in_proj_weight" for i in range(2)}
    for name in changed:
        delta = (result.state[name] - before[name]).view(3, 16, 16)
        assert not delta[1].any()
        assert [int(torch.linalg.matrix_rank(delta[part], rtol=1e-3)) for part in (0, 2)] == [4, 4]


def test_low_rank_training_is_that_of_the_first_order_expansion_in_both_factors():
    from torch.func import functional_call, jvp

    from taskarith_fast import data
    from taskarith_fast.loops.schedule import learning_rate

    result = finetune(vit(), _head(), digits(), dataclasses.replace(LORA, weight_decay=0.0))
    model, head, adapter = vit(), _head(), result.adapter
    model.requires_grad_(False)
    # The expansion of W + s B A about (A0, B0 = 0): A moves too, and must have no effect.
    a0 = [a.detach() for a in adapter.a]
    a, b = ([torch.nn.Parameter(x) for x in values] for values in (a0, [torch.zeros_like(x) for x in adapter.b]))
    weights = {name: model.get_parameter(name) for name in adapter.names}

    def update(a, b):
        deltas = {name: torch.zeros_like(w) for name, w in weights.items()}
        for target, x, y in zip(adapter.targets, a, b, strict=True):
            part = torch.zeros_like(weights[target.name])
            part[target.start : target.stop] = 8.0 * y @ x
            deltas[target.name] = deltas[target.name] + part
        return deltas

    zeros = [torch.zeros_like(x) for x in b]
    optimizer = torch.optim.AdamW([*a, *b], weight_decay=0.0)
    batches = data.batches(
        digits().splits["train"], batch_size=16, image_size=8, mean=model.mean, std=model.std, shuffle=True
    )
    for step, (images, labels) in zip(range(4), batches, strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps=4, lr=1e-3, warmup=2)
        tangents = ([x - y for x, y in zip(a, a0, strict=True)], list(b))
        _, deltas = jvp(update, (a0, zeros), tangents)
        moved = {name: w + deltas[name] for name, w in weights.items()}
        loss = torch.nn.functional.cross_entropy(head(functional_call(model, moved, (images,))), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*a, *b], 1.0)
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(a, a0, strict=True))
    for ours, theirs in zip(adapter.b, b, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-3)


def test_scaling_by_alpha_over_the_rank_is_a_switch():
    config = dataclasses.replace(LORA, lora_scaling="alpha_over_rank")
    assert prepare(vit(), LORA).adapter.scale == 8.0 and prepare(vit(), config).adapter.scale == 2.0


@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_checkpointed_activations_give_the_same_bytes(recipe):
    config = dataclasses.replace(LORA, recipe=recipe)
    plain = finetune(vit(), _head(), digits(), config)
    ours = finetune(vit(), _head(), digits(), dataclasses.replace(config, checkpoint_activations=True))
    assert all(torch.equal(ours.state[name], plain.state[name]) for name in plain.state)


def _mask(name, size, value):
    return Masks.full({name: (size,)}, value)


def test_masks_and_recipes_that_do_not_go_together_are_refused():
    masked = dataclasses.replace(SHORT, recipe="talos")
    masks = _mask("ln_post.weight", 16, True)
    with pytest.raises(ArgumentError, match="for the recipes talos, lota, masked only: 'talos' got none; make them"):
        prepare(vit(), masked)
    with pytest.raises(ArgumentError, match="'full' got masks; try recipe 'masked'"):
        prepare(vit(), SHORT, masks)
    with pytest.raises(ArgumentError, match="masks: nothing is no parameter of this encoder"):
        prepare(vit(), masked, _mask("nothing", 16, True))
    with pytest.raises(ArgumentError, match=r"masks: ln_post.weight must have shape \(16,\), got \(3,\)"):
        prepare(vit(), masked, _mask("ln_post.weight", 3, True))
    with pytest.raises(ArgumentError, match="masks must select at least one entry, got none"):
        prepare(vit(), masked, _mask("ln_post.weight", 16, False))
    with pytest.raises(ArgumentError, match="train_head must be false for recipes with masks"):
        finetune(vit(), _head(), digits(), dataclasses.replace(masked, train_head=True), masks=masks)


def test_sparse_recipes_move_the_selected_entries_alone():
    names = ("transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.ln_1.bias")
    start = dict(vit().named_parameters())
    chosen = {name: torch.zeros_like(start[name], dtype=torch.bool) for name in start}
    for name in names:
        chosen[name].view(-1)[::3] = True
    masks = Masks.pack(chosen)
    for recipe in ("talos", "lota", "masked"):
        result = finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, recipe=recipe), masks=masks)
        assert sorted(result.trained) == sorted(names)
        for name, mask in chosen.items():
            assert torch.equal(result.state[name][~mask], start[name].detach()[~mask]), name
        assert not torch.equal(result.state[names[0]], start[names[0]].detach())


def _some_masks():
    generator = torch.Generator().manual_seed(0)
    return Masks.pack({name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in vit().named_parameters()})


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compact_gradients_train_as_dense_ones_do(checkpointed, monkeypatch):
    config = dataclasses.replace(SHORT, recipe="masked", accumulation=2, checkpoint_activations=checkpointed)
    compact = finetune(vit(), _head(), digits(), config, masks=_some_masks())
    monkeypatch.setattr("taskarith_fast.loops.recipes.has_compact_gradients", lambda config, processes: False)
    dense = finetune(vit(), _head(), digits(), config, masks=_some_masks())
    assert compact.history["loss"] == pytest.approx(dense.history["loss"], rel=1e-5)
    for name, tensor in dense.state.items():
        torch.testing.assert_close(compact.state[name], tensor, atol=2e-6, rtol=1e-5)


def test_gradients_are_compact_unless_the_rest_of_them_is_needed():
    lota, talos = (dataclasses.replace(SHORT, recipe=recipe) for recipe in ("lota", "talos"))
    assert has_compact_gradients(lota, 1) and not has_compact_gradients(lota, 2)
    assert not has_compact_gradients(talos, 1) and has_compact_gradients(dataclasses.replace(talos, clip=None), 1)
    assert not has_compact_gradients(SHORT, 1)


def test_talos_clips_over_all_entries_and_lota_over_the_selected_ones():
    runs = {
        (recipe, over): finetune(
            vit(),
            _head(),
            digits(),
            dataclasses.replace(SHORT, recipe=recipe, clip=0.1, clip_over=over),
            masks=_some_masks(),
        ).state
        for recipe in ("talos", "lota")
        for over in (None, "all", "selected")
    }

    def same(a, b):
        return all(torch.equal(runs[a][name], runs[b][name]) for name in runs[a])

    assert same(("talos", None), ("talos", "all")) and same(("lota", None), ("lota", "selected"))
    assert same(("talos", "selected"), ("lota", "selected")) and not same(("talos", "all"), ("talos", "selected"))


def test_every_recipe_says_what_it_trains():
    assert all(recipe.text and recipe.kind in ("tensors", "masks", "low_rank") for recipe in RECIPES.values())
