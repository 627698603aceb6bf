import dataclasses

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from taskarith_fast.loops.config import ProbeConfig
from taskarith_fast.loops.evaluate import evaluate
from taskarith_fast.loops.features import FeatureCache, extract_features
from taskarith_fast.loops.probe import probe
from tests.loops.tiny import Pixels, digits, vit

ADAMW = ProbeConfig(lrs=(1e-3, 1e-2, 1e-1), steps=200, warmup=20)


def _sklearn(c, standardize):
    steps = [StandardScaler()] if standardize else []
    return make_pipeline(*steps, LogisticRegression(C=c, max_iter=5000, tol=1e-8))


@pytest.mark.parametrize("standardize", [True, False])
def test_lbfgs_finds_the_optimum_that_scikit_learn_finds(standardize):
    task, c = digits(), 0.05
    x, y = extract_features(Pixels(), task.splits["train"])
    config = ProbeConfig(solver="lbfgs", cs=(c,), standardize=standardize, tolerance=1e-6, max_iterations=2000)
    result = probe(Pixels(), task, config)
    theirs = _sklearn(c, standardize).fit(x.numpy(), y.numpy())
    ours = torch.log_softmax(result.head(x), dim=-1)
    torch.testing.assert_close(
        ours, torch.from_numpy(theirs.predict_log_proba(x.numpy())).float(), atol=2e-3, rtol=1e-3
    )
    assert (result.c, result.lr) == (c, None)


def test_adamw_comes_close_to_logistic_regression():
    task = digits()
    x, y = extract_features(Pixels(), task.splits["train"])
    val, val_y = extract_features(Pixels(), task.splits["val"])
    result = probe(Pixels(), task, ADAMW)
    assert result.val_accuracy >= _sklearn(1.0, True).fit(x, y).score(val, val_y) - 0.03


@pytest.mark.parametrize("config", [ADAMW, ProbeConfig(solver="lbfgs", cs=(1e-6, 1e-2, 1.0))])
def test_the_grid_is_judged_on_validation_images_and_the_smallest_of_equals_wins(config):
    result = probe(Pixels(), digits(), config)
    grid = config.lrs if config.solver == "adamw" else config.cs
    chosen = result.lr if config.solver == "adamw" else result.c
    assert tuple(result.scores) == grid
    assert chosen == min(v for v, score in result.scores.items() if score == max(result.scores.values()))
    assert result.val_accuracy == result.scores[chosen]
    assert result.val_accuracy == evaluate(Pixels(), result.head, digits().splits["val"]).accuracy


def test_the_head_of_a_normalising_encoder_normalises():
    encoder = Pixels()
    encoder.normalize_features = True
    result = probe(encoder, digits(), ProbeConfig(solver="lbfgs", cs=(1.0,)))
    assert result.head.normalize
    assert result.val_accuracy == evaluate(encoder, result.head, digits().splits["val"]).accuracy > 0.8


def test_a_constant_feature_does_no_harm():
    class Padded(Pixels):
        feature_dim = 65

        def forward(self, images):
            return torch.nn.functional.pad(super().forward(images), (0, 1), value=3.0)

    head = probe(Padded(), digits(), ProbeConfig(solver="lbfgs")).head
    assert head.weight.isfinite().all() and head.bias.isfinite().all()


def test_a_feature_that_is_all_but_zero_does_no_harm():
    class Dead(Pixels):
        feature_dim = 65

        def forward(self, images):
            return torch.cat([super().forward(images), 1e-33 * images[:, 0].sum((1, 2))[:, None]], dim=1)

    config = ProbeConfig(solver="lbfgs")
    head, without = probe(Dead(), digits(), config).head, probe(Pixels(), digits(), config).head
    torch.testing.assert_close(head.weight[:, :64], without.weight, rtol=1e-3, atol=1e-4)
    assert head.weight[:, 64].abs().max() < 1


def test_equal_seeds_give_equal_heads_and_the_head_is_frozen():
    config = dataclasses.replace(ADAMW, lrs=(1e-2,), steps=20)
    first, second = (probe(Pixels(), digits(), config).head for _ in range(2))
    other = probe(Pixels(), digits(), dataclasses.replace(config, seed=1)).head
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    assert not any(p.requires_grad for p in first.parameters())


def test_features_are_computed_once_and_in_order():
    encoder, task = vit(), digits()
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    cache = FeatureCache(encoder, batch_size=150)
    features, labels = cache.get(task.splits["train"])
    assert len(calls) == 3 and features.shape == (400, 16) and not features.is_inference()
    assert cache.get(task.splits["train"])[0] is features and len(calls) == 3
    images, expected = task.splits["train"].get(range(5))
    assert torch.equal(labels[:5], expected)
    mean, std = torch.tensor(encoder.mean).view(3, 1, 1), torch.tensor(encoder.std).view(3, 1, 1)
    torch.testing.assert_close(features[:5], encoder((images / 255 - mean) / std).detach(), atol=1e-5, rtol=1e-4)
