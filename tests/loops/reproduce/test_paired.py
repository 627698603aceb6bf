"""Statements compare models on the same images: their errors are those of paired differences, here derived by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from taskarith_fast.loops.reproduce import curves, maps
from taskarith_fast.loops.reproduce.study import Study, in_points


def study(**right):
    """Models of one recipe by method, image by image, on a task "a"; the own model has all right but the last."""
    own = torch.ones(100, dtype=torch.float64)
    own[-1] = 0
    by_method = {"individual": own, **right}
    return Study(SimpleNamespace(), {("full", method): {"a": x} for method, x in by_method.items()})


def first(count, more=()):
    x = torch.zeros(100, dtype=torch.float64)
    x[:count] = 1
    x[list(more)] = 1
    return x


def test_a_small_difference_on_the_same_images_is_seen():
    """60 of 100 against 55 of the same: 0.05 +- sqrt(0.05 - 0.0025) / 10; two independent samples would not tell."""
    found = study(cart=first(60), ties=first(55)).above(("full", "cart"), ("full", "ties"))
    assert found.value == pytest.approx(0.05) and found.stderr == pytest.approx(0.0475**0.5 / 10)
    assert in_points("", found).verdict == "holds"
    independent = ((0.6 * 0.4 + 0.55 * 0.45) / 100) ** 0.5
    assert 2 * independent > 0.05


def test_normalised_accuracies_are_paired_too():
    """x / y - u / y with one y of mean 0.99: residuals (x - u - d y) / 0.99, d = 0.05 / 0.99."""
    found = study(cart=first(60), ties=first(55)).above(("full", "cart"), ("full", "ties"), "norm")
    d = 0.05 / 0.99
    variance = (5 * (1 - d) ** 2 + 94 * d**2) / 100 / 0.99**2
    assert found.value == pytest.approx(d) and found.stderr == pytest.approx(variance**0.5 / 10)


def test_models_of_two_studies_are_paired():
    one, two = study(ties=first(55)), study(ties=first(50, more=[60, 61]))
    found = one.above(("full", "ties"), ("full", "ties"), "abs", two)
    assert found.value == pytest.approx(0.03) and found.stderr == pytest.approx((0.07 - 0.03**2) ** 0.5 / 10)


def test_a_margin_is_taken_off_the_difference():
    check = in_points("", study(cart=first(60), ties=first(55)).above(("full", "cart"), ("full", "ties")), beyond=2)
    assert check.difference == pytest.approx(3) and check.stderr == pytest.approx(100 * 0.0475**0.5 / 10)


def bench(arrays):
    return SimpleNamespace(analyze=lambda *_, **__: arrays, tasks=["a", "b"], quick=True)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    for module in (curves, maps):
        monkeypatch.setattr(module, "drawn", lambda *_: (b"", b""))


def test_ranks_are_compared_image_by_image():
    """8 % and full rank differ on one image of four of task "a" alone: 0.125 +- sqrt(0.25 - 0.0625) / 2 / 2."""
    correct = np.zeros((1, 1, 5, 6), dtype=bool)
    correct[..., 2, 0] = True
    correct[..., 4] = True
    arrays = {"correct": correct, "images": np.array([4, 2]), "tasks": np.array(["a", "b"])}
    (check,) = curves.ranks(bench(arrays), None).checks
    assert check.difference == pytest.approx(12.5) and check.stderr == pytest.approx(100 * 0.1875**0.5 / 4)


def test_disentanglement_is_compared_image_by_image():
    """Of task "a", one image's answer differs everywhere, the other's not at 0, the one point of four in [-1, 1]^2."""
    scales = np.array([0.0, 3.0])
    one, two = np.ones((2, 2, 2), dtype=bool), np.zeros((2, 2, 2), dtype=bool)
    one[0, 0, 1] = False
    arrays = {
        "scales_1": scales,
        "scales_2": scales,
        "distance_1": one,
        "distance_2": two,
        "tasks": np.array(["a", "b"]),
    }
    (check,) = maps.disentanglement(bench(arrays), None, recipes=["full"], reach=3.0, points=2, less=[]).checks
    # Over the grid minus inside: 1 - 1 and 0.75 - 0. Mean 0.375, deviation 0.375.
    assert check.difference == pytest.approx(0.375) and check.stderr == pytest.approx(0.375 / 2**0.5)


def test_pruning_is_compared_with_the_same_images_before():
    """Task "a", two masks: 4 of 4 images right before, 3 and 2 after; task "b" as before. Kept 0.625 and 1."""
    after = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0]], dtype=bool)
    before = np.array([1, 1, 1, 1, 1, 0], dtype=bool)
    ratio = np.array([[0.75, 1.0], [0.5, 1.0]])
    arrays = {"correct": after, "correct_before": before, "images": np.array([4, 2]), "tasks": np.array(["a", "b"]),
              "ratio": ratio}  # fmt: skip
    check = maps.insensitive(bench(arrays), None, kind="prune").checks[0]
    share = np.array([1, 1, 0.5, 0])  # of the masks, image by image
    assert check.difference == pytest.approx(100 * ((0.625 + 1) / 2 - 0.95))
    assert check.stderr == pytest.approx(100 * share.std() / 4**0.5 / 2)


def test_localization_is_paired_with_full_fine_tuning():
    """The vector of "b" leaves 2 of 4 images of "a" right under full, 3 under talos; that of "a" disturbs nothing."""
    images, tasks, before = np.array([4, 2]), np.array(["a", "b"]), np.ones(6, dtype=bool)
    found = {}
    for recipe, kept in (("full", 2), ("talos", 3)):
        correct = np.ones((2, 6), dtype=bool)
        correct[1, kept:4] = False  # task "b"'s vector on task "a"
        ratio = np.array([[1.0, 1.0], [kept / 4, 1.0]])
        found[recipe] = {"correct": correct, "correct_before": before, "images": images, "tasks": tasks, "ratio": ratio}
    shop = bench(None)
    shop.analyze = lambda kind, recipe: found[recipe]
    (check,) = maps.localization(shop, None, recipes=("full", "talos")).checks
    assert check.difference == pytest.approx(0.125)
    # One image of four is right under talos alone: variance 0.25 - 0.25^2; the mean is of two tasks.
    assert check.stderr == pytest.approx((0.1875 / 4) ** 0.5 / 2)
