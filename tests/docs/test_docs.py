"""Every Python snippet of the documentation runs, and every command in it exists with its options."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from safetensors.torch import save_file

import taskarith_fast as ta
from taskarith_fast.cli import app
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.loops.sweep import run
from taskarith_fast.loops.sweep.pool import HerePool
from taskarith_fast.models import random_head
from tests.loops.sweep.tiny_sweep import write_models, write_sweep, write_tasks
from tests.loops.tiny import digits, vit

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def named(pages):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The names and files that snippets take for granted: three checkpoints, a toy encoder, two tasks."""
    monkeypatch.chdir(tmp_path)
    encoder, tasks = vit(), {"a": digits(0, 3, 100), "b": digits(4, 3, 100)}
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    moved = [
        {n: t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) for n, t in base.items()}
        for i in range(2)
    ]
    for names, state in ((("base",), base), (("a", "cars"), moved[0]), (("b", "signs"), moved[1])):
        for name in names:
            save_file(state, f"{name}.safetensors")
    heads = {name: random_head(encoder.feature_dim, 3, seed=0, normalize=False) for name in tasks}
    images = torch.rand(8, 3, 8, 8)
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    write_tasks(tmp_path)
    write_models(tmp_path, vit())
    write_sweep(tmp_path)
    monkeypatch.setattr(run, "LocalPool", lambda setup, devices: HerePool(setup, devices[0]))
    masks = ta.calibrate(encoder, density=0.1, method="magnitude")
    return {
        "ta": ta, "np": np, "torch": torch, "encoder": encoder, "model": encoder, "base": base, "a": moved[0],
        "b": moved[1], "tau_a": moved[0], "tau_b": moved[1], "heads": heads, "head_a": heads["a"], "head_b": heads["b"],
        "images_a": [images], "images_b": [images], "masks": masks,
        "splits": {name: task.splits["test"] for name, task in tasks.items()},
    }  # fmt: skip


@pytest.mark.parametrize("page", named(p for p in PAGES if blocks(p, "python")))
def test_python_snippets_run(page, world):
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), world)


def commands():
    for page in PAGES:
        for text in blocks(page, "bash"):
            joined = text.replace("\\\n", " ")
            yield from (
                (page, line)
                for line in joined.splitlines()
                if re.search(r"(^|-m )taskarith(_fast)? \w", line.split("#")[0])
            )


@pytest.mark.parametrize(("page", "line"), [pytest.param(p, c, id=f"{p.name}: {c[:60]}") for p, c in commands()])
def test_commands_exist_with_their_options(page, line):
    words = shlex.split(re.sub(r"^.*?-m taskarith_fast", "taskarith", line), comments=True)
    assert words[1] in COMMANDS, line
    known = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts + parameter.secondary_opts}
    for word in words[2:]:
        if word.startswith("-"):
            assert word in known | {"--help"}, f"{words[1]} has no option {word}"


def test_every_page_is_in_the_navigation():
    written = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs')}\n" in written, page.name


def test_the_api_page_has_every_public_name():
    listed = re.findall(r"^::: ([\w.]+)\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert {name for _, name in listed} == {name for name in ta.__all__ if callable(getattr(ta, name))}
    for module, name in listed:
        assert getattr(__import__(module, fromlist=[name]), name) is getattr(ta, name)
