import pytest
import torch

from taskarith_fast.analysis.results import Measured
from taskarith_fast.errors import DataError
from taskarith_fast.loops import statistics


def _correct(rate, images=400, seed=0):
    return (torch.rand(images, generator=torch.Generator().manual_seed(seed)) < rate).double()


def _resampled(function, *runs, resamples=4000):
    """Standard deviation of a statistic over bootstrap resamples of the images, the same for all runs."""
    generator = torch.Generator().manual_seed(1)
    count = len(runs[0])
    rows = torch.randint(count, (resamples, count), generator=generator)
    return float(function(*(run[rows] for run in runs)).std())


def test_accuracy_has_the_binomial_error():
    x = _correct(0.7)
    p = float(x.mean())
    measured = statistics.accuracies({"a": x})["a"]
    assert measured.value == p
    assert measured.stderr == pytest.approx((p * (1 - p) / 400) ** 0.5)


def test_errors_of_differences_and_ratios_agree_with_the_bootstrap():
    x, y = _correct(0.6), torch.maximum(_correct(0.6), _correct(0.4, seed=2))
    difference = statistics.differences({"a": x}, {"a": y})["a"]
    assert difference.stderr == pytest.approx(_resampled(lambda x, y: x.mean(1) - y.mean(1), x, y), rel=0.06)
    ratio = statistics.ratios({"a": x}, {"a": y})["a"]
    assert ratio.value == pytest.approx(float(x.mean() / y.mean()))
    assert ratio.stderr == pytest.approx(_resampled(lambda x, y: x.mean(1) / y.mean(1), x, y), rel=0.06)


def test_a_model_compared_with_itself_has_no_error():
    x = {"a": _correct(0.6)}
    assert statistics.differences(x, x)["a"] == Measured(value=0, stderr=0)
    assert statistics.ratios(x, x)["a"] == Measured(value=1, stderr=0)


def test_mean_counts_every_task_the_same():
    tasks = {"a": Measured(value=0.5, stderr=0.03), "b": Measured(value=0.9, stderr=0.04)}
    assert statistics.mean_of(tasks) == Measured(value=0.7, stderr=0.025)


def test_seeds_are_averaged_image_by_image():
    seeds = [
        {"a": torch.tensor([1, 0, 1], dtype=torch.uint8)},
        {"a": torch.tensor([1, 1, 0], dtype=torch.uint8)},
    ]
    assert statistics.mean_over_seeds(seeds)["a"].tolist() == [1, 0.5, 0.5]


def test_nothing_is_normalised_by_zero():
    with pytest.raises(DataError, match="task a: the fine-tuned encoder has accuracy 0"):
        statistics.ratios({"a": _correct(0.5)}, {"a": torch.zeros(400, dtype=torch.float64)})


def test_a_difference_has_the_error_of_mcnemars_test():
    """Of 10 images both have 4 right and 2 wrong, 3 only the first, 1 only the second: d = 0.2, variance 0.4 - 0.04."""
    x = torch.tensor([1.0] * 4 + [0] * 2 + [1] * 3 + [0])
    y = torch.tensor([1.0] * 4 + [0] * 2 + [0] * 3 + [1])
    found = statistics.differences({"a": x.double()}, {"a": y.double()})["a"]
    assert found.value == pytest.approx(0.2) and found.stderr == pytest.approx((0.36 / 10) ** 0.5)


def test_a_difference_of_ratios_has_the_error_of_its_residuals():
    """2/3 with residuals (4, 4, -8, 0) / 9 minus 1/2 with residuals (1, -1, 0, 0): sqrt(25 + 169 + 64) / 36."""
    x, y, u, v = ({"a": torch.tensor(row).double()} for row in ([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]))
    found = statistics.ratio_differences(x, y, u, v)["a"]
    assert found.value == pytest.approx(1 / 6) and found.stderr == pytest.approx(258**0.5 / 36)


def test_the_error_of_a_difference_of_ratios_agrees_with_the_bootstrap():
    x, y, u, v = (
        torch.maximum(_correct(rate), _correct(0.3, seed=seed)) for seed, rate in enumerate((0.4, 0.7, 0.3, 0.6))
    )
    found = statistics.ratio_differences({"a": x}, {"a": y}, {"a": u}, {"a": v})["a"]
    expected = _resampled(lambda x, y, u, v: x.mean(1) / y.mean(1) - u.mean(1) / v.mean(1), x, y, u, v)
    assert found.stderr == pytest.approx(expected, rel=0.06)
