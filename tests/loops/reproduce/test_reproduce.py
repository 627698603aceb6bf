"""Every table and figure of the papers has its entry; every entry runs, on a toy here, and says what it found."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from taskarith_fast.analysis.outcome import Check
from taskarith_fast.errors import ArgumentError, DataError
from taskarith_fast.loops.config import ProbeConfig
from taskarith_fast.loops.demo import limit_tasks
from taskarith_fast.loops.demo_config import DemoConfig
from taskarith_fast.loops.reproduce import curves
from taskarith_fast.loops.reproduce.entries import ABSENT, ENTRIES
from taskarith_fast.loops.reproduce.published import published
from taskarith_fast.loops.reproduce.run import entry_lines, reproduce, run_entry
from taskarith_fast.loops.reproduce.setting import Setting, papers
from tests.loops.tiny import digits, vit

TINY = DemoConfig(
    preset="quick",
    encoder="tiny",
    train=32,
    val=32,
    test=48,
    probe=ProbeConfig(solver="lbfgs", device="cpu"),
    recipes={},
    task_arithmetic_scales=(0.0, 0.5, 1.0),
    ties_scales=(0.0, 1.0),
    cart_rank_ratios=(0.25, 0.5),
    cart_scales=(1.0, 2.0),
    adaptation_steps=2,
    linearized_negation_scales=(0.5, 1.0),
    sparse_negation_scales=(1.0,),
    mask_rounds=1,
    sensitivity_images=32,
    sensitivity_points=2,
)


@pytest.fixture(scope="module")
def setting():
    tasks = {task.name: task for task in (digits(0, 3, 100), digits(4, 3, 100), digits(7, 3, 100))}
    return Setting(TINY, vit(), limit_tasks(tasks, TINY), papers=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all entries, so that they share models as in use."""
    return tmp_path_factory.mktemp("reproduce")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_runs_and_has_a_page(name, setting, folder, monkeypatch):
    monkeypatch.setattr(curves, "DENSITIES", (0.01, 0.1, 1.0))
    page = run_entry(name, setting, folder).read_text()
    document = json.loads((folder / f"{name.replace('/', '-')}.json").read_text())
    assert published()[name].source.split(",")[0] in page
    assert "Not the paper's data" in page
    assert document["tables"] or "<img" in page
    assert bool(document["claim"]) == bool(document["checks"])
    assert document["papers_protocol"] is False
    for check in document["checks"]:
        assert check["verdict"] in page and check["verdict"] in ("holds", "does not hold", "undecided")
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", page), "the page asks for something outside of it"
    for row in published()[name].rows:
        assert any(str(row[0]) in str(table["rows"]) for table in document["tables"])


def test_models_are_shared_between_entries(setting, folder):
    run_entry("cart/figure1", setting, folder)
    before = {path.name for path in (folder / "stages").iterdir()}
    run_entry("cart/figure5", setting, folder)
    new = {path.name for path in (folder / "stages").iterdir()} - before
    assert not [name for name in new if name.startswith(("probe-", "finetune-"))]


def test_every_published_table_and_figure_has_an_entry_or_a_reason():
    assert ENTRIES.keys() | ABSENT.keys() == published().keys()
    assert not ENTRIES.keys() & ABSENT.keys()
    assert len(entry_lines()) == len(published())


def test_published_numbers_are_the_papers():
    found = published()
    assert found["talos/table1"].rows[-1][1:3] == (79.67, 90.73)
    assert dict((row[0], row[-1]) for row in found["cart/table2"].rows)["CART (Ours)"] == 90.8
    for name, paper in found.items():
        assert all(len(row) == len(paper.columns) for row in paper.rows), name
        assert re.search(r"arXiv:\d{4}\.\d{5}", paper.source)


@pytest.mark.parametrize(
    ("difference", "stderr", "verdict"),
    [(1.0, 0.4, "holds"), (1.0, 0.6, "undecided"), (-1.0, 0.6, "undecided"), (-1.0, 0.4, "does not hold"),
     (1.0, None, "holds"), (-1.0, None, "does not hold"), (0.0, None, "does not hold"), (0.0, 0.0, "undecided")],
)  # fmt: skip
def test_verdicts(difference, stderr, verdict):
    assert Check("a statement", difference, stderr).verdict == verdict


def test_wrong_arguments_are_one_line(tmp_path):
    with pytest.raises(ArgumentError, match=r"did you mean 'talos/table1'"):
        reproduce("talos/tabel1", tmp_path)
    with pytest.raises(ArgumentError, match="a list of checkpoints"):
        reproduce("hazimeh/table2", tmp_path)
    with pytest.raises(ArgumentError, match="seeds must be at least 1"):
        reproduce("talos/table1", tmp_path, seeds=0)


def test_missing_data_of_the_papers_is_an_error_and_no_other_run(tmp_path):
    with pytest.raises(DataError, match=r"sun397.*not found"):
        papers(tmp_path, "open_clip:ViT-B-32", heads="zero_shot", seeds=1, device="cpu")


def test_the_papers_own_setting_says_so(setting):
    full = dataclasses.replace(setting, papers=True)
    assert full.words.startswith("The paper's protocol with")
    assert (full.recipe("talos").steps, full.recipe("talos").recipe, full.recipe("talos").lr) == (2000, "talos", 1e-5)


def test_list_on_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "taskarith_fast", "reproduce", "--list"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "talos/table1 " in done.stdout and "(not here:" in done.stdout


def test_heads_of_the_papers_protocol_are_written_by_the_text_tower(monkeypatch):
    from taskarith_fast.loops import demo_stages
    from taskarith_fast.loops.demo_stages import Workshop, write_head
    from taskarith_fast.loops.stages import Artefact
    from taskarith_fast.models import load_clip, load_encoder

    name = "open_clip:ViT-B-32"
    monkeypatch.setattr(demo_stages, "load_clip", lambda name: load_clip(name, pretrained=False))
    shop = Workshop(load_encoder(name, pretrained=False), {})
    facts, tensors = write_head(shop, {}, task="mnist", encoder=name)
    head = shop.head(Artefact(facts, tensors, 0.0, 0.0, None).tensors)
    assert head.normalize and head.weight.shape == (10, shop.encoder.feature_dim)
