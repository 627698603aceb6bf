"""Language models under compact gradients, sparse optimizers, masks and merges; tied tensors stay tied."""

import copy

import pytest
import torch
import torch.nn.functional as F

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.models import load_language_model
from taskarith_fast.models.blocks import checkpoint_activations, transformer_blocks
from taskarith_fast.models.compact import compact_gradients
from taskarith_fast.models.lora import LowRankAdapter
from taskarith_fast.models.maskable import maskable_names
from tests.models.language import NAMES, SEQ2SEQ, texts, tiny_language_model

pytest.importorskip("transformers")


def _masks(model, density=0.3):
    g = torch.Generator().manual_seed(2)
    names = maskable_names(n for n, _ in model.named_parameters())
    return ta.Masks.pack({n: torch.rand(model.get_parameter(n).shape, generator=g) < density for n in names})


def _loss(model, batch):
    labels = torch.arange(len(batch["input_ids"])) % 4
    return F.cross_entropy(model(**batch), labels)


def _freeze(model, masks):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in masks)


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", NAMES)
def test_compact_gradients_are_the_selected_entries_of_the_dense_ones(name, recomputed):
    model, batch = tiny_language_model(name), texts(name)
    masks = _masks(model)
    _freeze(model, masks)
    _loss(model, batch).backward()
    dense = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    if recomputed:
        checkpoint_activations(model)
    with compact_gradients(model, masks):
        _loss(model, batch).backward()
    largest = max(float(g.abs().max()) for g in dense.values())
    for n, grad in dense.items():
        parameter = model.get_parameter(n)
        if grad.dim() == 2:
            assert parameter.grad is None
            torch.testing.assert_close(parameter.compact_grad, grad[masks[n]], rtol=1e-4, atol=1e-5 * largest)
        else:
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("name", NAMES)
def test_sparse_steps_in_the_backward_pass_train_as_masked_dense_ones_do(name):
    ours, batch = tiny_language_model(name), texts(name, count=6)
    theirs, before = copy.deepcopy(ours), copy.deepcopy(ours.state_dict())
    masks = _masks(ours)
    _freeze(ours, masks)
    # Gradients near zero, as of the bias of keys, are rounding, of which AdamW with a smaller eps would make steps.
    options = {"lr": 1e-2, "weight_decay": 0.0, "eps": 1e-4}
    sparse = ta.SparseAdamW(ours.named_parameters(), masks=masks, **options)
    dense = torch.optim.AdamW([theirs.get_parameter(n) for n in masks], **options)
    losses = []
    for _ in range(4):
        sparse.zero_grad()
        with compact_gradients(ours, masks):
            loss = _loss(ours, batch)
            loss.backward()
        sparse.step()
        losses.append(float(loss))
        theirs.zero_grad()
        _loss(theirs, batch).backward()
        for n in masks:
            theirs.get_parameter(n).grad.mul_(masks[n])
        dense.step()
    assert losses[-1] < losses[0]
    for n, value in ours.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(n), rtol=1e-3, atol=2e-4)
        kept = masks[n] if n in masks else torch.zeros(value.shape, dtype=torch.bool)
        assert torch.equal(value[~kept], before[n][~kept])


def test_a_tied_output_is_no_dense_layer_alone():
    model, batch = tiny_language_model("t5"), texts("t5")
    masks = {"shared.weight": torch.ones(60, 24, dtype=torch.bool)}
    message = "shared.weight is used outside dense layers too; leave it out of the masks"
    with compact_gradients(model, masks), pytest.raises(ArgumentError, match=message):
        _loss(model, batch).backward()


@pytest.mark.parametrize(("name", "blocks"), [("bert", 2), ("distilbert", 2), ("t5", 4), ("t5 gated, tied", 3)])
def test_the_blocks_of_all_stacks_are_found(name, blocks):
    found = transformer_blocks(tiny_language_model(name))
    assert len(found) == blocks and all(type(b).__name__ in ("BertLayer", "TransformerBlock", "T5Block") for b in found)


@pytest.mark.parametrize("name", NAMES)
def test_low_rank_updates_adapt_query_and_value_of_every_attention(name):
    model, batch = tiny_language_model(name), texts(name)
    adapter = LowRankAdapter(model, rank=3, scale=2.0)
    attentions = {"t5": 6, "t5 gated": 6, "t5 gated, tied": 4}.get(name, 2)
    ends = ("query.weight", "value.weight", "q_lin.weight", "v_lin.weight", "Attention.q.weight", "Attention.v.weight")
    assert len(adapter.names) == 2 * attentions and all(n.endswith(ends) for n in adapter.names)
    for b in adapter.b:
        torch.nn.init.normal_(b, std=0.1)
    before = model(**batch)
    with adapter.applied():
        adapted = model(**batch)
    adapter.check_seen()
    assert not torch.allclose(adapted, before, atol=1e-3)
    model.load_state_dict(adapter.merged(model.state_dict()))
    torch.testing.assert_close(model(**batch), adapted, atol=1e-4, rtol=1e-4)


def _finetuned(name, seed):
    model = tiny_language_model(name)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=g))
    return model


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_merges_in_memory_and_of_files_keep_ties(name, tmp_path):
    base, tuned = tiny_language_model(name), [_finetuned(name, seed) for seed in (1, 2, 3)]
    vectors = [ta.TaskVector.between(base.state_dict(), m.state_dict()) for m in tuned]
    truth = tiny_language_model(name)
    truth.load_state_dict(sum(vectors[1:], vectors[0]).apply(base.state_dict(), scale=0.3))
    for i, model in enumerate([base, *tuned]):
        model.save_pretrained(tmp_path / str(i))
    paths = [tmp_path / str(i) for i in range(4)]
    ta.merge_files(paths[0], paths[1:], tmp_path / "merged", scale=0.3)
    base.config.save_pretrained(tmp_path / "merged")
    merged = load_language_model(f"t5:{tmp_path / 'merged'}").eval()
    for model in (truth, merged):
        tied = [
            model.encoder.embed_tokens,
            model.decoder.embed_tokens,
            *([model.lm_head] if name != "t5 gated" else []),
        ]
        assert all(layer.weight is model.shared.weight for layer in tied)
    torch.testing.assert_close(merged(**texts(name)), truth(**texts(name)), rtol=1e-5, atol=1e-5)


def test_a_merge_of_states_with_tied_names_in_them_is_one_with_ties():
    base, tuned = tiny_language_model("t5"), [_finetuned("t5", seed) for seed in (1, 2, 3)]
    merged = ta.merge(base.state_dict(), [m.state_dict() for m in tuned], method="ties", density=0.2)
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    assert len({merged[n].data_ptr() for n in names}) == 1
    model = tiny_language_model("t5")
    model.load_state_dict(merged)
    assert model.lm_head.weight is model.shared.weight and torch.equal(model.shared.weight, merged["shared.weight"])
