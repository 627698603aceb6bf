"""The linear-layer sets pick the same matrices under every library's names."""

import pytest

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models import VisionTransformer, VitConfig, is_linear_layer, linear_layer_names

OURS = list(VisionTransformer(VitConfig(width=12, depth=2, heads=2, position_grid=2)).state_dict())

FAMILIES = {  # attention weights, mlp weights, and names of the same model that belong to no set
    "open_clip": (
        [
            "visual.transformer.resblocks.0.attn.in_proj_weight",
            "visual.transformer.resblocks.0.attn.out_proj.weight",
        ],
        [
            "visual.transformer.resblocks.0.mlp.c_fc.weight",
            "visual.transformer.resblocks.0.mlp.c_proj.weight",
        ],
        [
            "visual.proj",
            "visual.conv1.weight",
            "visual.ln_pre.weight",
            "visual.transformer.resblocks.0.ln_1.weight",
        ],
    ),
    "timm": (
        ["blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"],
        ["blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"],
        [
            "patch_embed.proj.weight",
            "blocks.0.norm1.weight",
            "pos_embed",
            "head.weight",
            "blocks.0.ls1.gamma",
        ],
    ),
    "transformers_5_vit": (
        [f"layers.0.attention.{part}_proj.weight" for part in "qkvo"],
        ["layers.0.mlp.fc1.weight", "layers.0.mlp.fc2.weight"],
        [
            "embeddings.patch_embeddings.projection.weight",
            "layers.0.layernorm_before.weight",
            "pooler.dense.weight",
        ],
    ),
    "transformers_clip": (
        [f"vision_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in ("q", "k", "v", "out")],
        ["vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc2.weight"],
        ["visual_projection.weight", "vision_model.encoder.layers.0.layer_norm1.weight"],
    ),
    "transformers_4_vit": (
        [f"encoder.layer.0.attention.attention.{part}.weight" for part in ("query", "key", "value")]
        + ["encoder.layer.0.attention.output.dense.weight"],
        ["encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.output.dense.weight"],
        ["pooler.dense.weight", "encoder.layer.0.layernorm_after.weight"],
    ),
}


def _biases(names):
    return [n.replace("in_proj_weight", "in_proj_bias").replace(".weight", ".bias") for n in names]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_four_sets(family):
    attention, mlp, others = FAMILIES[family]
    names = [*attention, *_biases(attention), *mlp, *_biases(mlp), *others, *_biases(others)]
    expected = {
        "p1": attention,
        "p2": [*attention, *_biases(attention)],
        "p3": [*attention, *mlp],
        "p4": [*attention, *_biases(attention), *mlp, *_biases(mlp)],
    }
    for layers, chosen in expected.items():
        assert linear_layer_names(names, layers) == tuple(chosen)


def test_our_own_model_is_open_clip_without_the_prefix():
    assert linear_layer_names(OURS) == tuple(
        f"transformer.resblocks.{i}.attn.{name}" for i in (0, 1) for name in ("in_proj_weight", "out_proj.weight")
    )
    assert len(linear_layer_names(OURS, "p4")) == 2 * 8


def test_the_text_tower_of_a_whole_clip_is_left_out():
    names = [
        "transformer.resblocks.0.attn.in_proj_weight",
        "visual.transformer.resblocks.0.attn.in_proj_weight",
    ]
    assert linear_layer_names(names) == (names[1],)
    names = [
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_model.encoder.layers.0.self_attn.q_proj.weight",
    ]
    assert linear_layer_names(names) == (names[1],)


def test_similar_names_are_no_linear_layers():
    for name in ("attn.q_norm.weight", "xattn.qkv.weight", "attn.out_proj.weight_g", "attn_pool.proj.weight"):
        assert not is_linear_layer(name, "p4")


def test_unknown_sets_and_empty_choices_are_refused():
    with pytest.raises(ArgumentError, match="layers must be one of p1, p2, p3, p4, got 'p5'"):
        is_linear_layer("attn.qkv.weight", "p5")
    with pytest.raises(ArgumentError, match=r"names must hold a parameter of the set p1 .* got 1 names such as conv1"):
        linear_layer_names(["conv1.weight"])
