"""Language models: what they return, what their names mean, and how they are loaded."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models import language_model, linear_layer_names, load_language_model
from taskarith_fast.models.maskable import maskable_names
from tests.models.language import ENCODERS, NAMES, SEQ2SEQ, texts, tiny_language_model

transformers = pytest.importorskip("transformers")


def _by_transformers(model, text, answer):
    """log p(answer | text) of one text without padding, by the library's own class."""
    library = transformers.T5ForConditionalGeneration
    logits = library.forward(model, input_ids=text[None], decoder_input_ids=_shifted(answer)).logits
    return -F.cross_entropy(logits[0], answer, reduction="sum")


def _shifted(answer):
    return torch.cat([torch.tensor([0]), answer[:-1]])[None]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_scores_are_summed_log_probabilities_of_each_answer_alone(name):
    model, batch = tiny_language_model(name, torch.float64), texts(name)
    with torch.no_grad():
        scores = model(**batch)
        for b, ids in enumerate(batch["input_ids"]):
            text = ids[batch["attention_mask"][b].bool()]
            for c, answer in enumerate(batch["answers"][b]):
                truth = _by_transformers(model, text, answer[answer != -100])
                torch.testing.assert_close(scores[b, c], truth, rtol=1e-5, atol=1e-5)


def test_an_answer_without_a_token_is_impossible():
    model, batch = tiny_language_model("t5"), texts("t5")
    batch["answers"][1, 2] = -100
    scores = model(**batch)
    assert scores[1, 2] == -torch.inf and torch.isfinite(scores).sum() == scores.numel() - 1
    assert not torch.isnan(torch.autograd.grad(scores.softmax(-1)[1, 0], model.shared.weight)[0]).any()


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_scores_of_half_precision_are_summed_in_float32(name):
    batch, whole = texts(name), tiny_language_model(name)
    truth = whole(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = whole(**batch)
    for scores in (mixed, tiny_language_model(name, torch.bfloat16)(**batch)):
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, truth, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_does_not_change_features(name):
    model, batch = tiny_language_model(name), texts(name)
    features = model(**batch)
    assert features.shape == (3, model.feature_dim)
    for b, ids in enumerate(batch["input_ids"]):
        alone = model(input_ids=ids[batch["attention_mask"][b].bool()][None])
        torch.testing.assert_close(features[b], alone[0], rtol=1e-4, atol=1e-5)


def test_the_first_token_may_stand_for_the_text():
    batch = texts("bert")
    model = tiny_language_model("bert", pooling="cls")
    hidden = transformers.BertModel.forward(model, **batch).last_hidden_state
    torch.testing.assert_close(model(**batch), hidden[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_everything_but_embeddings_biases_of_positions_and_the_output_is_maskable(name):
    model = tiny_language_model(name)
    names = [n for n, _ in model.named_parameters()]
    kinds = (nn.Linear, nn.LayerNorm)
    layers = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, kinds) for p, _ in m.named_parameters()}
    norms = {n for n in names if n.endswith("layer_norm.weight")}
    assert set(maskable_names(names)) == {n for n in layers | norms if n != "lm_head.weight"} & set(names)


@pytest.mark.parametrize(
    ("name", "attentions", "dense"), [("bert", 2, 2), ("distilbert", 2, 2), ("t5", 6, 2), ("t5 gated", 6, 3)]
)
def test_linear_layers_are_found_in_every_attention_and_mlp(name, attentions, dense):
    names = [n for n, _ in tiny_language_model(name).named_parameters()]
    blocks = 4 if name.startswith("t5") else 2
    assert len(linear_layer_names(names, "p1")) == 4 * attentions
    assert len(linear_layer_names(names, "p3")) == 4 * attentions + dense * blocks
    biases = 0 if name.startswith("t5") else 6 * blocks
    assert len(linear_layer_names(names, "p4")) == 4 * attentions + dense * blocks + biases


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_loads_with_its_ties(name, tmp_path):
    model = tiny_language_model(name)
    model.save_pretrained(tmp_path)
    family = "bert" if name in ENCODERS else "t5"
    loaded = load_language_model(f"{family}:{tmp_path}").eval()
    assert type(loaded) is type(model) and not model.training
    batch = texts(name)
    torch.testing.assert_close(loaded(**batch), model(**batch))
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]
    if family == "t5":
        assert (loaded.lm_head.weight is loaded.shared.weight) == (name != "t5 gated")


def test_random_weights_need_a_folder_or_a_known_name(tmp_path):
    tiny_language_model("t5 gated").config.save_pretrained(tmp_path)
    model = load_language_model(f"t5:{tmp_path}", pretrained=False, depth=1)
    assert len(model.encoder.block) == len(model.decoder.block) == 1 and model.lm_head.weight is not model.shared.weight
    small = load_language_model("t5:google-t5/t5-small", pretrained=False)
    assert sum(p.numel() for p in small.parameters()) == 60_506_624
    mini = load_language_model("bert:sentence-transformers/all-MiniLM-L6-v2", pretrained=False)
    assert mini.feature_dim == 384 and mini.max_length == 512


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_language_model("gpt:gpt2"), ArgumentError, "name must have one of the forms bert:"),
        (lambda: load_language_model("t5:nowhere/at-all"), CheckpointError, "nowhere/at-all: not in the local cache"),
        (lambda: load_language_model("bert:bert", pretrained=False, depth=13), ArgumentError, "depth must be from"),
        (lambda: load_language_model("bert:bert", pretrained=False, pooling="max"), ArgumentError, "pooling must be"),
        (lambda: language_model(transformers.ViTConfig()), ArgumentError, "config must be one of bert, .*got 'vit'"),
        (lambda: tiny_language_model("bert")(torch.ones(2, 21).long()), ArgumentError, "at most 20 tokens.*got 21"),
        (lambda: tiny_language_model("bert")(torch.ones(2, 5)), ArgumentError, "input_ids must be integers"),
        (lambda: tiny_language_model("t5")(torch.ones(2, 5).long()), ArgumentError, r"answers must have shape \[B=2"),
        (
            lambda: tiny_language_model("bert")(torch.ones(2, 5).long(), torch.ones(2, 4)),
            ArgumentError,
            r"attention_mask must have the shape of input_ids, \[2, 5\], got \[2, 4\]",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(call, error, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        call()
