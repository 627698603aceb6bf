"""Heads: the zero-shot recipe step by step, and what a linear classifier promises."""

import pytest
import torch
import torch.nn.functional as F

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models import Head, random_head, zero_shot_head

CLASSES = ("cat", "dog {}", "hot air balloon")
TEMPLATES = (lambda c: f"a photo of a {c}.", "a drawing of a {}.")


@pytest.fixture(scope="module")
def clip():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=16)
    text = open_clip.CLIPTextCfg(width=32, heads=2, layers=1)
    model = open_clip.CLIP(16, vision, text)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    return model


@pytest.mark.parametrize("normalize_mean", [True, False])
def test_zero_shot_weights_follow_the_recipe(clip, normalize_mean):
    import open_clip

    head = zero_shot_head(clip, CLASSES, TEMPLATES, normalize_mean=normalize_mean)
    clip.eval()
    for row, name in zip(head.weight, CLASSES, strict=True):
        sentences = [f"a photo of a {name}.", f"a drawing of a {name}."]
        with torch.no_grad():
            embedded = clip.encode_text(open_clip.tokenize(sentences)).double()
            embedded = embedded / embedded.norm(dim=1, keepdim=True)
            mean = embedded.mean(dim=0)
            mean = mean / mean.norm() if normalize_mean else mean
        torch.testing.assert_close(row.double(), torch.exp(torch.tensor(3.0)) * mean, rtol=1e-5, atol=1e-5)
    assert head.weight.dtype == torch.float32 and head.bias is None and head.normalize


def test_zero_shot_logits_are_scaled_cosines(clip):
    from taskarith_fast.models.open_clip_encoder import OpenClipEncoder

    encoder = OpenClipEncoder(clip.visual)
    features = encoder(torch.randn(4, 3, 16, 16))
    head = zero_shot_head(clip, CLASSES, TEMPLATES)
    cosines = F.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(features), clip.logit_scale.exp() * cosines)
    torch.testing.assert_close(head(7 * features), head(features))


def test_zero_shot_leaves_the_model_in_its_mode(clip):
    for training in (True, False):
        clip.train(training)
        zero_shot_head(clip, CLASSES, TEMPLATES)
        assert clip.training == training and all(p.grad is None for p in clip.parameters())


def test_zero_shot_uses_the_tokenizer_it_is_given(clip):
    import open_clip

    seen = []
    tokens = lambda sentences: seen.extend(sentences) or open_clip.tokenize(sentences)  # noqa: E731
    zero_shot_head(clip, ["cat"], ["a {}"], tokens)
    assert seen == ["a cat"]


def test_zero_shot_refuses_what_it_cannot_do(clip, monkeypatch):
    with pytest.raises(ArgumentError, match=r"classnames must be a sequence of at least one, got \[\]"):
        zero_shot_head(clip, [], TEMPLATES)
    with pytest.raises(ArgumentError, match=r"templates must be a sequence of at least one, got 'a {}'"):
        zero_shot_head(clip, CLASSES, "a {}")
    with pytest.raises(ArgumentError, match="model must have encode_text and logit_scale, and Linear has not"):
        zero_shot_head(torch.nn.Linear(1, 1), CLASSES, TEMPLATES)
    monkeypatch.setattr(clip, "vocab_size", 32000)
    with pytest.raises(ArgumentError, match=r"tokenizer must be given .* got vocab_size=32000"):
        zero_shot_head(clip, CLASSES, TEMPLATES)


def test_a_head_is_a_linear_map_of_its_features():
    head = Head(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.0, 1.0]))
    assert head(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 9.0]]
    normalised = Head(head.weight, head.bias, normalize=True)
    torch.testing.assert_close(normalised(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 2.6]]))
    assert "normalize=True" in repr(normalised)


def test_a_head_owns_its_weights():
    weight = torch.ones(2, 3)
    head = Head(weight)
    weight.zero_()
    assert head.weight.sum() == 6


def test_random_heads_depend_on_their_seed_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, third = (random_head(64, 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, third.weight)
    assert torch.equal(random_head(64, 10, seed=1, bias=False).weight, first.weight)
    assert first.weight.abs().max() <= 1 / 8 and first.bias.shape == (10,)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Head(torch.ones(3)), r"weight must have shape \[C, D\], got \[3\]"),
        (lambda: Head(torch.ones(3, 2), torch.ones(2)), r"bias must have shape \[C=3\], got \[2\]"),
        (lambda: random_head(0, 3, seed=0), "feature_dim and classes must be at least 1, got 0 and 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
