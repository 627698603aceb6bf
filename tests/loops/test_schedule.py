import math

import pytest

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.schedule import learning_rate


def test_cosine_with_warmup_has_the_published_values():
    def rate(step):
        return learning_rate(step, steps=2000, lr=1e-5, warmup=200)

    assert rate(0) == pytest.approx(1e-5 / 200)
    assert rate(99) == pytest.approx(0.5e-5)
    assert rate(199) == rate(200) == 1e-5
    assert rate(1100) == pytest.approx(0.5e-5)
    assert rate(1999) == pytest.approx(0.5e-5 * (1 + math.cos(math.pi * 1799 / 1800)))


def test_linear_falls_by_equal_steps_and_never_reaches_zero():
    rates = [learning_rate(s, steps=6, lr=4.0, warmup=2, schedule="linear") for s in range(6)]
    assert rates == [2.0, 4.0, 4.0, 3.0, 2.0, 1.0]


def test_constant_stays_after_the_warmup():
    rates = [learning_rate(s, steps=4, lr=1.0, warmup=2, schedule="constant") for s in range(4)]
    assert rates == [0.5, 1.0, 1.0, 1.0]


def test_a_warmup_longer_than_the_run_never_ends():
    assert learning_rate(9, steps=10, lr=1.0, warmup=20) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosin"}, "schedule must be one of cosine, linear, constant; got 'cosin'"),
        ({"step": 10}, r"step must be in \[0, steps=10\), got 10"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"step": 0, "steps": 10, "lr": 1.0} | change
    with pytest.raises(ArgumentError, match=message):
        learning_rate(arguments.pop("step"), **arguments)
