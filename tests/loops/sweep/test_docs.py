"""The sweep files of docs/sweeps.md are sweep files."""

import re
from pathlib import Path

import pytest

from taskarith_fast.loops.sweep.file import read_sweep
from taskarith_fast.loops.sweep.run import plan_sweep

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sweeps.md"
FILES = [text for text in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S) if "[[tasks]]" in text]
PARTS = [text for text in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S) if "[[tasks]]" not in text]


def counts(path):
    plan = plan_sweep(path)
    return {kind: sum(job.kind == kind for job in plan.jobs) for kind in ("probe", "masks", "finetune", "merge")}


@pytest.mark.parametrize("text", FILES + [FILES[0] + part for part in PARTS])
def test_every_file_is_read(text, tmp_path):
    (tmp_path / "sweep.toml").write_text(text)
    assert read_sweep(tmp_path / "sweep.toml").merge


def test_the_worked_examples_are_planned(tmp_path):
    (tmp_path / "sweep.toml").write_text(FILES[0])
    assert counts(tmp_path / "sweep.toml") == {"probe": 4, "masks": 0, "finetune": 4, "merge": 3 * 8 + 3 * 4}
    (tmp_path / "sweep.toml").write_text(FILES[2])
    assert counts(tmp_path / "sweep.toml") == {"probe": 2, "masks": 12, "finetune": 12, "merge": 6 * 11}
