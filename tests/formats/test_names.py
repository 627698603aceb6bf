"""Wrappers come off, the text tower stays or goes, and every change is listed."""

import pytest
import torch

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.formats.names import normalize_names
from tests.formats import models

VIT_B_32 = {
    **{"positional_embedding": (77, 512), "text_projection": (512, 512), "logit_scale": ()},
    **{"visual.class_embedding": (768,), "visual.positional_embedding": (50, 768), "visual.proj": (768, 512)},
    "visual.conv1.weight": (768, 3, 32, 32),
    **{f"visual.{n}.{p}": (768,) for n in ("ln_pre", "ln_post") for p in ("weight", "bias")},
    "token_embedding.weight": (49408, 512),
    **{"ln_final.weight": (512,), "ln_final.bias": (512,)},
}
BLOCK = {
    **{f"{n}.{p}": (768,) for n in ("ln_1", "ln_2") for p in ("weight", "bias")},
    **{"attn.in_proj_weight": (2304, 768), "attn.in_proj_bias": (2304,)},
    **{"attn.out_proj.weight": (768, 768), "attn.out_proj.bias": (768,)},
    **{"mlp.c_fc.weight": (3072, 768), "mlp.c_fc.bias": (3072,)},
    **{"mlp.c_proj.weight": (768, 3072), "mlp.c_proj.bias": (768,)},
}


def image_encoder():
    """The 158 tensors of task_vectors' ImageEncoder of ViT-B/32, without their values."""
    blocks = {f"visual.transformer.resblocks.{i}.{n}": s for i in range(12) for n, s in BLOCK.items()}
    return {f"model.{n}": torch.empty(s, device="meta") for n, s in {**VIT_B_32, **blocks}.items()}


def count(state):
    return sum(tensor.numel() for tensor in state.values())


def test_the_counts_of_an_image_encoder_with_and_without_its_text_leftovers():
    state = image_encoder()
    assert len(state) == 158
    kept, report = normalize_names(state)
    assert count(kept) == 113_448_705 and report.prefix == "model." and not report.dropped
    assert "visual.proj" in kept and "positional_embedding" in kept
    assert report.notes == ["visual. stays, because the text tower has tensors of the same names"]
    dropped, report = normalize_names(state, text_tower="drop")
    assert count(dropped) == 87_849_216 and report.prefix == "model.visual."
    assert set(report.dropped.values()) == {"text tower"} and len(report.dropped) == 6
    assert set(report.renamed) | set(report.dropped) == set(state)


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "_orig_mod.image_encoder.model.", "module.module."])
@pytest.mark.parametrize("make", [models.open_clip_model, models.timm_vit, models.hf_vit], ids=lambda m: m.__name__)
def test_wrappers_come_off_whatever_their_order(prefix, make):
    plain = make().state_dict()
    state, report = normalize_names({prefix + name: tensor for name, tensor in plain.items()})
    assert list(state) == list(plain) and report.prefix == prefix
    assert all(state[name] is plain[name] for name in plain)
    assert report.renamed == ({prefix + name: (name,) for name in plain} if prefix else {})


def test_visual_comes_off_when_nothing_is_beside_it():
    plain = models.open_clip_model().visual.state_dict()
    state, report = normalize_names({f"visual.{name}": tensor for name, tensor in plain.items()})
    assert list(state) == list(plain) and report.prefix == "visual."


def test_a_head_beside_the_encoder_keeps_its_name():
    encoder = {f"module.image_encoder.model.{n}": t for n, t in models.timm_vit().state_dict().items()}
    head = {"module.classification_head.weight": torch.ones(2, 2)}
    state, report = normalize_names({**encoder, **head})
    assert "classification_head.weight" in state and "cls_token" in state
    assert report.prefix == "module.image_encoder.model."


def test_hugging_faces_text_tower_goes_too():
    clip = models.hf_clip_whole().state_dict()
    state, report = normalize_names(clip, text_tower="drop")
    assert set(state) == set(models.hf_clip().state_dict())
    assert set(state) | set(report.dropped) == set(clip)


def test_a_model_without_text_tower_loses_nothing():
    plain = models.ours().state_dict()
    state, report = normalize_names(plain, text_tower="drop")
    assert list(state) == list(plain) and not report.dropped


def test_names_that_would_fall_together_are_refused():
    state = {"model.head.weight": torch.ones(1), "head.weight": torch.ones(1), "model.norm.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"head\.weight: its name without prefix"):
        normalize_names(state)


def test_another_word_for_the_text_tower_is_an_argument_error():
    with pytest.raises(ArgumentError, match="text_tower must be keep or drop, got 'remove'"):
        normalize_names({}, text_tower="remove")
