"""The command line as a user meets it: help, one-line errors, exit codes."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file


def run(*words, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "taskarith_fast", *map(str, words)], capture_output=True, text=True, cwd=cwd
    )


@pytest.fixture
def files(tmp_path):
    for name in ("base", "a", "b"):
        save_file({"w": torch.randn(5, 7)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_help_lists_the_verbs():
    done = run("--help")
    assert done.returncode == 0
    for verb in ("demo", "merge", "doctor"):
        assert verb in done.stdout


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv=['taskarith','--help']\ntry:\n import taskarith_fast.cli as c; c.main()\n"
        "except SystemExit: pass\nprint('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "False"


def test_merge_writes_the_file_and_says_what_it_did(files):
    done = run("merge", "base.safetensors", "a.safetensors", "b.safetensors", "-o", "out.safetensors", "-m", "ties",
               "-p", "density=0.5", cwd=files)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "density=0.5" in done.stdout and (files / "out.safetensors").exists()


def test_list_shows_every_method():
    done = run("merge", "--list")
    assert done.returncode == 0
    for method in ("average", "task_arithmetic", "ties", "cart"):
        assert method in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base.safetensors", "a.safetensors"], "--output is missing"),
        (["base.safetensors", "-o", "out.safetensors"], "at least one fine-tuned"),
        (["base.safetensors", "a.safetensors", "-o", "out.bin"], "must end in .safetensors"),
        (["base.safetensors", "nowhere.safetensors", "-o", "out.safetensors"], "no such checkpoint"),
        (["base.safetensors", "a.safetensors", "-o", "out.safetensors", "-m", "tise"], "did you mean 'ties'"),
        (["base.safetensors", "a.safetensors", "-o", "out.safetensors", "-p", "scale"], "name=value"),
        (["base.safetensors", "a.safetensors", "-o", "out.safetensors", "-m", "ties", "-p", "density=2"], "density"),
    ],
)
def test_a_mistake_costs_one_line_exit_code_two_and_writes_nothing(words, message, files):
    before = sorted(p.name for p in files.iterdir())
    done = run("merge", *words, cwd=files)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in files.iterdir()) == before


def test_doctor_explains_every_operator():
    done = run("doctor")
    assert done.returncode == 0 and "weighted_sum: CPU tensors run" in done.stdout
