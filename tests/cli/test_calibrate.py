"""`taskarith calibrate`: one-line errors before anything is loaded."""

import pytest

from tests.cli.test_cli import run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the method 'talos' needs a task and its head; the head is written by taskarith probe"),
        (["-m", "best"], "method must be one of talos, lota, magnitude, random; got 'best'"),
        (["-s", "rounds=0"], "rounds must be at least 1, got 0"),
        (["--preset", "mine"], "preset must be one of paper, code; got 'mine'"),
    ],
)
def test_a_mistake_costs_one_line(words, message, tmp_path):
    done = run("calibrate", "-o", "masks.safetensors", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
