"""The time left is that of what is left, at the speed so far."""

import re

import pytest

from taskarith_fast.loops.sweep.clock import Clock
from tests.loops.sweep.test_schedule import job
from tests.loops.sweep.test_store import row


class Bar:
    def __init__(self):
        self.shown = 0.0

    def advance(self, steps, note=None):
        self.shown += steps


def test_the_bar_is_full_when_all_is_done():
    bar = Bar()
    clock = Clock(bar, lines=False)
    jobs = [job(i, cost=cost) for i, cost in enumerate((1.0, 5.0, 2.0))]
    clock.expect(jobs[:2], jobs[2:])
    for each in jobs:
        clock.tick(each, row())
    assert bar.shown == pytest.approx(100)


def test_what_is_expected_may_change():
    bar = Bar()
    clock = Clock(bar, lines=False)
    clock.expect([job(i) for i in range(4)])
    clock.tick(job(0), row())
    assert bar.shown == pytest.approx(25)
    clock.expect([job(1)])
    clock.tick(job(1), row())
    assert bar.shown == pytest.approx(100)


def test_the_time_left_is_that_of_the_cost_left():
    clock = Clock(Bar(), lines=False)
    clock.expect([job(0, cost=10.0), job(1, cost=30.0)])
    clock.tick(job(0, cost=10.0), row())
    assert clock.text(clock._start + 60.0) == "1 points done, 1 to go, about 3.0 min left"


def test_lines_are_printed_for_failures_and_at_the_end(capsys):
    clock = Clock(Bar(), lines=True)
    clock.expect([job(i) for i in range(3)])
    clock.tick(job(0), row())
    assert capsys.readouterr().err == ""
    clock.tick(job(1), row(state="failed", error="no room"))
    assert re.fullmatch(r"2 points done, 1 to go, about \d+\.\d min left: no room\n", capsys.readouterr().err)
    clock.tick(job(2), row())
    assert capsys.readouterr().err.startswith("3 points done, 0 to go")
