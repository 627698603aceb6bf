"""Names and shapes between libraries: the same features, the same bits, refusals with a reason."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.formats.convert import convert_names
from taskarith_fast.formats.layouts import detect_layout
from tests.formats import models

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

FAMILIES = {
    "open_clip": {
        "open_clip": lambda seed: models.open_clip_model(seed).visual,
        "hf_clip": models.hf_clip,
        "timm": models.timm_clip,
    },
    "vit": {"timm": models.timm_vit, "hf_vit": models.hf_vit},
    "dinov2": {"open_clip": models.ours, "timm": models.timm_dinov2, "hf_dinov2": models.hf_dinov2},
}
PAIRS = [(f, a, b) for f, members in FAMILIES.items() for a in members for b in members if a != b]


@functools.cache
def made(make):
    return make().state_dict()


@torch.no_grad()
def features(model):
    outputs = model(models.images())
    if hasattr(outputs, "image_embeds"):
        return outputs.image_embeds
    return outputs.last_hidden_state[:, 0] if hasattr(outputs, "last_hidden_state") else outputs


@pytest.mark.parametrize(("family", "source", "target"), PAIRS)
def test_converted_weights_give_the_same_features(family, source, target):
    one, other = FAMILIES[family][source](seed=1), FAMILIES[family][target](seed=2)
    converted, report = convert_names(one.state_dict(), target=target, memory_names=True)
    assert (report.source, report.target) == (source, target)
    prefix = "vision_model." if target == "hf_clip" else ""
    assert set(converted) == set(other.state_dict()), prefix
    other.load_state_dict(converted)
    expected = features(one)
    assert expected.std() > 0.1
    torch.testing.assert_close(features(other), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "source", "target"), PAIRS)
@pytest.mark.parametrize("memory_names", [False, True])
def test_there_and_back_gives_the_same_bits(family, source, target, memory_names):
    state = FAMILIES[family][source](seed=3).state_dict()
    there, _ = convert_names(state, target=target, memory_names=memory_names)
    back, _ = convert_names(there, target=source, memory_names=True)
    if source == "hf_dinov2":
        state["embeddings.mask_token"] = torch.zeros_like(state["embeddings.mask_token"])
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


@pytest.mark.parametrize("make", [models.hf_vit, models.hf_dinov2, models.hf_clip], ids=lambda f: f.__name__)
def test_hugging_face_reads_what_was_converted(make, tmp_path):
    model = make(seed=4)
    hub = {"hf_vit": "timm", "hf_dinov2": "timm", "hf_clip": "open_clip"}[make.__name__]
    there, _ = convert_names(model.state_dict(), target=hub)
    back, _ = convert_names(there, target=make.__name__)
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    saved = load_file(tmp_path / "model.safetensors")
    assert set(back) == set(saved)
    save_file({k: v.contiguous().clone() for k, v in back.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    again, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    missing = {name for name in loading["missing_keys"] if not name.startswith("pooler.")}
    assert not missing and not loading["unexpected_keys"]
    torch.testing.assert_close(features(again.eval()), features(model), rtol=0, atol=0)


def test_a_whole_clip_model_takes_its_text_tower_along():
    clip, hf = models.open_clip_model(seed=5), models.hf_clip_whole(seed=6)
    converted, _ = convert_names(clip.state_dict(), target="hf_clip")
    assert set(converted) == set(hf.state_dict())
    hf.load_state_dict(converted)
    tokens = torch.tensor([[1, 4, 2, 10, 0, 0, 0], [3, 10, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        images = models.images()
        theirs = hf.get_image_features(pixel_values=images)
        theirs = getattr(theirs, "pooler_output", theirs)
        torch.testing.assert_close(theirs, clip.encode_image(images), rtol=1e-5, atol=1e-5)
        words = hf.get_text_features(input_ids=tokens)
        words = getattr(words, "pooler_output", words)
        torch.testing.assert_close(words, clip.encode_text(tokens), rtol=1e-5, atol=1e-5)
    back, _ = convert_names(converted, target="open_clip")
    assert set(back) == set(clip.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in clip.state_dict().items())


def test_a_classifier_moves_between_timm_and_hugging_face():
    one, other = models.timm_vit(seed=1, classes=5), models.hf_vit_classifier(seed=2)
    converted, _ = convert_names(one.state_dict(), target="hf_vit", memory_names=True)
    other.load_state_dict(converted)
    with torch.no_grad():
        torch.testing.assert_close(other(models.images()).logits, one(models.images()), rtol=1e-5, atol=1e-5)


def test_gated_dinov2_survives_timm():
    state = models.hf_dinov2(seed=1, gated=True).state_dict()
    packed = {}
    for name, tensor in state.items():
        if ".gate_proj." in name:
            packed[name.replace("gate_proj", "weights_in")] = torch.cat([tensor, state[name.replace("gate", "up")]])
        elif ".up_proj." not in name:
            packed[name.replace("down_proj", "weights_out").replace("o_proj", "output.dense")] = tensor
    packed = {
        n.replace("attention.output", "attention.output")
        .replace("attention.q_proj", "attention.attention.query")
        .replace("attention.k_proj", "attention.attention.key")
        .replace("attention.v_proj", "attention.attention.value"): t
        for n, t in packed.items()
    }
    there, _ = convert_names(packed, target="timm")
    assert "blocks.0.mlp.fc1.weight" in there
    back, _ = convert_names(there, target="hf_dinov2")
    del packed["embeddings.mask_token"]
    assert all(torch.equal(back[name], tensor) for name, tensor in packed.items())


def test_every_name_is_accounted_for():
    state = {f"module.{name}": t for name, t in models.hf_dinov2(seed=1).state_dict().items()}
    converted, report = convert_names(state, target="timm")
    assert set(report.renamed) | set(report.dropped) == set(state)
    assert report.dropped == {"module.embeddings.mask_token": "the mask token, used in pre-training only"}
    assert {new for names in report.renamed.values() for new in names} == set(converted)
    query = "module.encoder.layer.0.attention.q_proj.weight"
    assert report.renamed[query] == ("blocks.0.attn.qkv.weight",)
    _, report = convert_names(converted, target="hf_dinov2")
    assert len(report.renamed["blocks.0.attn.qkv.bias"]) == 3
    assert report.added == {"embeddings.mask_token": "zeros; used in pre-training only"}
    assert len(report.notes) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_bits(dtype):
    state = models.timm_dinov2(seed=1).to(dtype).state_dict()
    back, _ = convert_names(convert_names(state, target="hf_dinov2")[0], target="timm")
    assert all(back[n].dtype == dtype and torch.equal(back[n], t) for n, t in state.items())


@pytest.mark.parametrize(
    ("make", "target", "options", "message"),
    [
        (models.hf_clip, "hf_vit", {}, "no place for"),
        (models.hf_clip, "hf_vit", {"drop_extra": True}, "hf_vit has no place for a norm before the blocks"),
        (models.timm_dinov2, "hf_vit", {}, "hf_vit has no place for LayerScale"),
        (models.timm_vit, "hf_dinov2", {}, "hf_dinov2 needs LayerScale"),
        (models.timm_vit, "hf_clip", {}, "hf_clip has no place for a bias of the patch embedding"),
        (lambda: models.hf_vit(pooler=True), "timm", {}, "the pooler after the class token: drop it"),
        (lambda: models.timm_vit(classes=3), "open_clip", {}, "a classifier: drop it"),
        (lambda: models.timm_vit(reg_tokens=4, init_values=1.0), "hf_dinov2", {}, "register tokens"),
        (models.open_clip_model, "timm", {}, "no text tower, got 30 tensors of one"),
        (
            models.timm_vit,
            "open_clip",
            {"source": "hf_vit"},
            "source must be the layout of the checkpoint, timm",
        ),
        (lambda: torch.nn.Linear(2, 2), "timm", {}, "no known vision transformer"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(make, target, options, message):
    with pytest.raises(CheckpointError, match=message) as error:
        convert_names(make().state_dict(), target=target, **options)
    assert "\n" not in str(error.value)


def test_a_layout_nobody_knows_is_an_argument_error():
    with pytest.raises(ArgumentError, match="target must be one of open_clip, timm"):
        convert_names({}, target="keras")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.norm1.bias", r"block 1 lacks norm1\.bias"),
        ("blocks.0.", "block 0 is missing"),
    ],
)
def test_incomplete_models_are_refused(name, message):
    state = {k: v for k, v in models.timm_vit().state_dict().items() if not k.startswith(name)}
    with pytest.raises(CheckpointError, match=message):
        convert_names(state, target="hf_vit")


def test_a_lonely_query_is_refused():
    state = models.hf_vit().state_dict()
    del state["layers.0.attention.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"fellows of q, k, v are missing"):
        convert_names(state, target="timm")


def test_an_unknown_tensor_is_never_dropped():
    state = models.timm_vit().state_dict() | {"blocks.0.attn.q_norm.weight": torch.ones(8)}
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.q_norm\.weight is not a tensor of a timm model"):
        convert_names(state, target="hf_vit", drop_extra=True)


MAKERS = [models.open_clip_model, models.timm_clip, models.timm_dinov2, models.hf_vit, models.hf_dinov2, models.ours]
LAYOUTS = ["open_clip", "timm", "hf_clip", "hf_vit", "hf_dinov2"]
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(MAKERS), st.sampled_from(LAYOUTS), st.booleans(), st.data())
def test_damaged_states_give_typed_errors(make, target, drop, data):
    state = dict(made(make))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(state)))
        change = data.draw(st.sampled_from(["shape", "remove", "prefix", "copy"]))
        tensor = state.pop(name)
        if change == "shape":
            state[name] = torch.zeros(data.draw(SHAPES))
        elif change == "prefix":
            state[data.draw(st.sampled_from(["vit.", "visual.", "model.", "blocks.0.", "text_model."])) + name] = tensor
        elif change == "copy":
            state |= {name: tensor, data.draw(st.sampled_from(["vit.", "vision_model.", "visual."])) + name: tensor}
    try:
        _, report = convert_names(state, target=target, text_tower="drop" if drop else "keep", drop_extra=drop)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        unchanged = set(state) - set(report.renamed) - set(report.dropped)
        assert not unchanged or report.source == report.target or unchanged <= {"logit_scale"}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (models.timm_vit, "timm"),
        (models.ours, "open_clip"),
        (models.hf_clip, "hf_clip"),
        (models.hf_vit, "hf_vit"),
        (models.hf_dinov2, "hf_dinov2"),
    ],
)
def test_layouts_are_told_by_their_names(make, expected):
    layout = detect_layout(make().state_dict())
    assert layout is not None and layout.name == expected


def test_models_of_two_libraries_can_be_merged():
    from taskarith_fast.merging import merge

    base, one, other = models.timm_vit(seed=1), models.timm_vit(seed=2), models.hf_vit(seed=3)
    converted, _ = convert_names(other.state_dict(), target="timm")
    merged = merge(base.state_dict(), [one.state_dict(), converted], method="average")
    expected = (one.state_dict()["pos_embed"] + converted["pos_embed"]) / 2
    torch.testing.assert_close(merged["pos_embed"], expected)
