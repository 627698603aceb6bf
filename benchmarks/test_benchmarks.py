"""The quick cases of the table under pytest-benchmark: ``pytest benchmarks --benchmark-only``."""

import pytest

from benchmarks.cases import CASES

QUICK = [case for case in CASES if case.quick]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_case(case, benchmark):
    ours = next(iter(case.build().ours.values()))
    benchmark(ours)
