"""Fisher diagonals: the expectation, its samples, given labels and the published shortcut, against autograd loops."""

import pytest
import torch
from torch import nn

from taskarith_fast import fisher_diagonal
from taskarith_fast.errors import ArgumentError
from taskarith_fast.models import random_head
from tests.capture.by_the_book import assert_close, squares
from tests.loops.tiny import vit

CLASSES = 4


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, 8, 8, generator=generator), torch.randint(0, CLASSES, (7,), generator=generator)


@pytest.fixture
def classifier():
    """A small encoder and its head in one: logits far from even, so that classes matter."""
    head = random_head(16, CLASSES, seed=0)
    with torch.no_grad():
        head.weight.mul_(8)
    return nn.Sequential(vit(), head)


def _value(target, y):
    return y.log_softmax(-1) if target == "logprob" else y


@pytest.mark.parametrize("target", ["logprob", "logit"])
def test_exact_is_the_expectation_over_the_models_classes(classifier, data, target):
    images, _ = data
    truth = {name: 0 for name, _ in classifier.named_parameters()}
    p = classifier(images).softmax(-1).detach().double()
    for b in range(len(images)):
        for c in range(CLASSES):
            part = squares(classifier, images[b : b + 1], lambda y, _, c=c: _value(target, y)[c])
            truth = {name: t + p[b, c] * part[name] / len(images) for name, t in truth.items()}
    assert_close(fisher_diagonal(classifier, [images[:3], images[3:]], target=target), truth)


@pytest.mark.parametrize("target", ["logprob", "logit"])
def test_given_labels_give_the_empirical_fisher(classifier, data, target):
    images, labels = data
    truth = squares(classifier, images, lambda y, b: _value(target, y)[labels[b]])
    fisher = fisher_diagonal(classifier, [(images, labels)], labels="label", target=target)
    assert_close(fisher, {name: t / len(images) for name, t in truth.items()})


def test_sampled_labels_give_the_expectation_on_average(classifier, data):
    images, _ = data
    exact = fisher_diagonal(classifier, [images])
    draws = 60
    mean = fisher_diagonal(classifier, [images] * draws, labels="sampled", seed=3)
    error = sum(float((mean[n] - exact[n]).sum()) for n in exact) / sum(float(f.sum()) for f in exact.values())
    assert abs(error) < 0.15
    one = fisher_diagonal(classifier, [images], labels="sampled", seed=3)
    assert any(not torch.allclose(one[n], exact[n], rtol=0.05) for n in exact)


def test_samples_depend_on_the_seed_and_the_image_and_not_on_the_batches(classifier, data):
    images, _ = data
    options = {"labels": "sampled", "seed": 1}
    whole = fisher_diagonal(classifier, [images], **options)
    cut = fisher_diagonal(classifier, [images[:2], images[2:]], **options)
    split = fisher_diagonal(classifier, [images], batch_split=3, **options)
    again = fisher_diagonal(classifier, [images], **options)
    other = fisher_diagonal(classifier, [images], labels="sampled", seed=2)
    for name, f in whole.items():
        assert torch.equal(f, again[name])
        torch.testing.assert_close(cut[name], f, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(split[name], f, rtol=1e-4, atol=1e-9)
    assert not all(torch.allclose(other[n], f, rtol=1e-2) for n, f in whole.items())


def test_mergelm_squares_the_gradient_of_the_batch(classifier, data):
    images, _ = data
    logits = classifier(images)
    (logits.softmax(-1).detach().sqrt() * logits.log_softmax(-1)).sum().backward()
    truth = {name: p.grad.double() ** 2 / len(images) for name, p in classifier.named_parameters()}
    assert_close(fisher_diagonal(classifier, [images], labels="mergelm"), truth)


def test_a_head_beside_the_encoder_is_not_observed(classifier, data):
    encoder, head = classifier
    joint, apart = fisher_diagonal(classifier, [data[0]]), fisher_diagonal(encoder, [data[0]], head=head)
    assert [f"0.{name}" for name in apart] == [name for name in joint if name.startswith("0.")]
    assert all(torch.equal(joint[f"0.{name}"], f) for name, f in apart.items())


def test_recomputing_the_blocks_changes_no_bit(data):
    encoder, head = vit(), random_head(16, CLASSES, seed=0)
    plain = fisher_diagonal(encoder, [data[0]], head=head)
    recomputed = fisher_diagonal(encoder, [data[0]], head=head, checkpoint_activations=True)
    assert all(torch.equal(recomputed[name], f) for name, f in plain.items())


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "batches must yield at least one image, got none"),
        ([torch.zeros(2, 3, 8, 8)], {"labels": "label"}, "needs batches of .images, labels., got images alone"),
        ([(torch.zeros(2, 3, 8, 8), torch.tensor([0, 9]))], {"labels": "label"}, r"in \[0, C=4\), got 0 to 9"),
        (
            [(torch.zeros(2, 3, 8, 8), torch.zeros(2))],
            {"labels": "label"},
            r"integers of shape \[B=2\], got",
        ),
        ([torch.full((2, 3, 8, 8), torch.nan)], {}, "logits must be finite"),
        ([], {"labels": "best"}, "labels must be one of exact, sampled, label, mergelm; got 'best'"),
        ([], {"target": "loss"}, "target must be one of logprob, logit; got 'loss'"),
        ([], {"batch_split": 0}, "batch_split must be at least 1, got 0"),
        ([], {"labels": "mergelm", "batch_split": 2}, "it takes neither batch_split"),
        ([], {"names": ["0.nothing"]}, "names: 0.nothing is no parameter"),
    ],
)
def test_mistakes_are_named(classifier, batches, options, message):
    with pytest.raises(ArgumentError, match=message):
        fisher_diagonal(classifier, batches, **options)


def test_a_model_without_logits_is_refused():
    with pytest.raises(ArgumentError, match=r"must map images to logits \[B=2, C\], got \[2, 1, 4\]"):
        fisher_diagonal(nn.Sequential(nn.Flatten(2), nn.Linear(64, 4)), [torch.zeros(2, 1, 8, 8)])
