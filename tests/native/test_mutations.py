"""The tests notice bugs that are put into the kernels; tools/mutations.py tries all of them."""

import subprocess
import sys

import pytest

from tests.native.emulated import CSRC
from tests.native.mutants import MUTANTS

ROOT = CSRC.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1 and mutant.old != mutant.new


def test_mutants_have_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25


@pytest.mark.slow
def test_the_quick_mutants_are_caught():
    command = [sys.executable, ROOT / "tools/mutations.py", "--quick", "--no-baseline"]
    result = subprocess.run(command, text=True, capture_output=True)
    if "skipped" in result.stdout:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
