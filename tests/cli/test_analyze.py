"""`taskarith analyze`: every kind from files to a folder, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import taskarith_fast as ta
from taskarith_fast.cli import app
from taskarith_fast.data import find_task, save_npz
from taskarith_fast.errors import ArgumentError, CheckpointError, TaskarithError
from taskarith_fast.loops.analyze import KINDS
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from tests.loops import edited
from tests.loops.tiny import digits, vit

CLASSES = [str(c) for c in range(10)]
NAMES = ("ones", "twos")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two tasks, their heads, base and models; the models as task vectors too; masks."""
    folder = tmp_path_factory.mktemp("analyze")
    base = edited.base()
    ta.save_state_dict(base, folder / "base.safetensors")
    for i, name in enumerate(NAMES):
        images, labels = (x.numpy() for x in digits().splits["test"].get(range(60 * i, 60 * i + 60)))
        rows = {"train": slice(0, 20), "val": slice(20, 40), "test": slice(20, 60)}
        parts = {f"{s}_{w}": x[rows[s]] for s in rows for w, x in (("images", images[:, 0]), ("labels", labels))}
        save_npz(folder / f"{name}.npz", CLASSES, **parts)
        record = {"kind": "head", "normalize": False, "classes": CLASSES, "task": name}
        metadata = {"taskarith": json.dumps(record)}
        head = random_head(16, 10, seed=i).state_dict()
        ta.save_state_dict(head, folder / f"{name}_head.safetensors", metadata=metadata)
        state = edited.moved(base, i + 1)
        ta.save_state_dict(state, folder / f"{name}.safetensors")
        ta.TaskVector.between(base, state).save(folder / f"{name}_tau.safetensors")
        late = edited.moved(base, i + 5, lambda n: "resblocks.1." in n)
        ta.SparseTaskVector.between(base, late).save(folder / f"{name}_sparse.safetensors")
        g = torch.Generator().manual_seed(i)
        masks = {n: torch.rand(p.shape, generator=g) < 0.2 for n, p in vit().named_parameters()}
        Masks.pack(masks).save(folder / f"{name}_masks.safetensors")
    return folder


@pytest.fixture
def folder(place, tmp_path, monkeypatch):
    """A fresh folder to write to, the files in reach."""
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit(9))
    monkeypatch.chdir(tmp_path)
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run(*words):
    done = CliRunner().invoke(app, ["analyze", *words], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


BASE = ("base.safetensors",)
MODELS = tuple(f"{n}.safetensors" for n in NAMES)
TASKS = tuple(w for n in NAMES for w in ("--task", f"{n}.npz", "--head", f"{n}_head.safetensors"))
MASKS = tuple(w for n in NAMES for w in ("--masks", f"{n}_masks.safetensors"))
OUT = ("-o", "out", "--device", "cpu")
RANKS = ("-p", "rank_ratios=[0,0.25,1]")

RUNS = {
    "disentanglement": (*BASE, *MODELS, *TASKS, "-p", "points=3"),
    "cosine": (*BASE, *MODELS),
    "localization": (*BASE, *MODELS, *TASKS),
    "mask_share": MASKS,
    "mask_iou": MASKS,
    "prune": (*BASE, *TASKS, *MASKS),
    "perturb": (*BASE, *TASKS, *MASKS),
    "sensitivity_drift": (*BASE, *MODELS, *TASKS, "-p", "labels=label"),
    "landscape": (*BASE, *MODELS, *TASKS, "-p", "points=3", *RANKS),
    "rank_sweep": (*BASE, *MODELS, *TASKS, *RANKS),
    "routing": (*BASE, *MODELS, *TASKS, *RANKS),
    "task_count": (*BASE, *MODELS, *TASKS, "-p", "scales=[0.2,0.5]"),
    "lambda_curve": (*BASE, *MODELS, *TASKS, "-p", "scales=[0,0.5,1]"),
    "radar": (*BASE, *MODELS, *MODELS, *TASKS, "-p", 'recipes=["a","b"]'),
}
FOUND = {
    "disentanglement": ("error", (3, 3)), "cosine": ("cosine", (2, 2)), "localization": ("ratio", (2, 2)),
    "mask_share": ("density", (2, 42)), "mask_iou": ("iou", (2, 2)), "prune": ("ratio", (2, 2)),
    "perturb": ("ratio", (2, 2)), "sensitivity_drift": ("relative", (2, 2)),
    "landscape": ("loss", (3, 3, 2)), "rank_sweep": ("accuracy", (2, 2, 3, 2)),
    "routing": ("accuracy", (2, 2, 3, 2)), "task_count": ("accuracy", (3, 2)), "lambda_curve": ("accuracy", (3, 2)),
    "radar": ("accuracy", (2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_numbers_record_and_figures(folder, kind):
    said = run(kind, *RUNS[kind], *OUT)
    name, shape = FOUND[kind]
    assert said.startswith(f"out/{kind}.npz: ") and name in said
    arrays = np.load(folder / "out" / f"{kind}.npz")
    assert arrays[name].shape == shape
    record = json.loads((folder / "out" / f"{kind}.json").read_text())
    assert record["kind"] == kind and record["paper"] == KINDS[kind].paper
    assert {k: list(arrays[k].shape) for k in arrays} == record["arrays"]
    assert all(len(entry["sha256"]) == 64 for entry in record["inputs"]) and len(record["inputs"]) >= 2
    for theme in ("light", "dark"):
        image = (folder / "out" / f"{kind}.{theme}.png").read_bytes()
        assert image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) > 5000
    assert not [path for path in (folder / "out").iterdir() if path.name.startswith(".")]


def test_the_numbers_are_those_of_the_function(folder):
    run("disentanglement", *RUNS["disentanglement"], *OUT, "--no-figures", "-p", "low=-2", "-p", "high=1")
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["disentanglement.json", "disentanglement.npz"]
    arrays = np.load(folder / "out" / "disentanglement.npz")
    base = edited.base()
    states = [edited.moved(base, seed) for seed in (1, 2)]
    splits = {n: find_task(f"{n}.npz").splits["test"] for n in NAMES}
    heads = {n: random_head(16, 10, seed=i) for i, n in enumerate(NAMES)}
    expected = ta.analysis.disentanglement_error(
        ta.EncoderEdits(vit(), base, states, splits, heads), scales=[-2, -0.5, 1]
    )
    np.testing.assert_array_equal(arrays["by_task"], expected.by_task)
    np.testing.assert_array_equal(arrays["error"], expected.error)
    assert arrays["tasks"].tolist() == list(NAMES) and arrays["models"].tolist() == list(NAMES)


def test_the_drift_is_that_of_gradients_image_by_image(folder):
    run("sensitivity_drift", *RUNS["sensitivity_drift"], *OUT, "--no-figures")
    arrays = np.load(folder / "out" / "sensitivity_drift.npz")
    base = edited.base()
    split, head = find_task("twos.npz").splits["test"], random_head(16, 10, seed=1).requires_grad_(False)
    pixels, labels = edited.pixels(split), split.get(range(len(split)))[1]

    def gradients(state):
        encoder = vit().eval()
        encoder.load_state_dict(state)
        weights = list(encoder.parameters())
        for image, label in zip(pixels, labels, strict=True):
            log_p = head(encoder(image[None])).log_softmax(-1)[0, label]
            yield torch.cat([g.flatten() for g in torch.autograd.grad(log_p, weights)]).double()

    before = list(gradients(base))
    start = float(torch.stack([g.square().sum() for g in before]).mean())
    assert arrays["start"][1] == pytest.approx(start, rel=1e-4)
    for t in range(2):
        pairs = zip(gradients(edited.moved(base, t + 1)), before, strict=True)
        change = float(torch.stack([(a - b).square().sum() for a, b in pairs]).mean())
        assert arrays["change"][t, 1] == pytest.approx(change, rel=1e-3)
        assert arrays["relative"][t, 1] == pytest.approx(change / start, rel=1e-3)


def test_a_grid_may_be_any_two_lists(folder):
    words = ("-p", "scales_1=[0,1]", "-p", "scales_2=[-1,0,2]", "-p", "distance=representation")
    run("disentanglement", *RUNS["disentanglement"], *OUT, *words)
    arrays = np.load(folder / "out" / "disentanglement.npz")
    assert arrays["error"].shape == (2, 3) and arrays["error"][0, 1] == 0 and arrays["error"][1, 2] > 0
    assert arrays["by_task"][0, 1, 1] == 0 and arrays["by_task"][1, 0, 2] == 0  # the other task's scale is 0


@pytest.mark.parametrize("kind", ["disentanglement", "cosine", "localization", "landscape", "task_count"])
def test_task_vectors_serve_as_models_do(folder, kind):
    taus = tuple(f"{n}_tau.safetensors" for n in NAMES)
    swapped = [dict(zip(MODELS, taus, strict=True)).get(word, word) for word in RUNS[kind]]
    name, _ = FOUND[kind]
    for words, where in ((RUNS[kind], "models"), (swapped, "taus")):
        run(kind, *words, "-o", where, "--device", "cpu", "--no-figures")
    one, two = (np.load(folder / where / f"{kind}.npz")[name] for where in ("models", "taus"))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def test_sparse_task_vectors_serve_too(folder):
    sparse = [f"{n}_sparse.safetensors" for n in NAMES]
    run("localization", *BASE, *sparse, *TASKS, *OUT, "--no-figures")
    assert np.load(folder / "out" / "localization.npz")["accuracy"].shape == (2, 2)


def test_linearized_models_are_judged_when_asked(folder):
    run("lambda_curve", *RUNS["lambda_curve"], *OUT, "--no-figures")
    run("lambda_curve", *RUNS["lambda_curve"], "-o", "lin", "--device", "cpu", "--no-figures", "--linearized")
    one, two = (np.load(folder / where / "lambda_curve.npz") for where in ("out", "lin"))
    np.testing.assert_array_equal(one["accuracy"][0], two["accuracy"][0])  # scale 0 is the base for both
    assert not np.array_equal(one["accuracy"], two["accuracy"])
    assert json.loads((folder / "lin" / "lambda_curve.json").read_text())["linearized"] is True


def test_images_are_drawn_by_seed(folder):
    for where, *words in (
        ("all",),
        ("a", "--samples", "10"),
        ("b", "--samples", "10"),
        ("c", "--samples", "10", "--seed", "1"),
    ):
        run("localization", *RUNS["localization"], "-o", where, "--device", "cpu", "--no-figures", *words)
    whole, a, b, c = (np.load(folder / where / "localization.npz") for where in ("all", "a", "b", "c"))
    assert whole["images"].tolist() == [40, 40] and a["images"].tolist() == [10, 10]
    np.testing.assert_array_equal(a["accuracy"], b["accuracy"])
    assert not np.array_equal(a["accuracy"], c["accuracy"])
    np.testing.assert_allclose(a["accuracy_stderr"], np.sqrt(a["accuracy"] * (1 - a["accuracy"]) / 10))


def test_a_folder_holds_several_analyses_and_is_overwritten_by_name_only(folder):
    run("cosine", *RUNS["cosine"], *OUT)
    (folder / "out" / "notes.txt").write_text("mine")
    run("mask_iou", *RUNS["mask_iou"], *OUT)
    with pytest.raises(CheckpointError, match=r"out/cosine.json: exists already; --overwrite replaces it"):
        run("cosine", *RUNS["cosine"], *OUT)
    run("cosine", *RUNS["cosine"], *OUT, "--overwrite")
    old = folder / "out" / "cosine-old.dark.png"
    old.touch()
    run("cosine", *RUNS["cosine"], *OUT, "--overwrite", "--no-figures")
    assert not old.exists() and not (folder / "out" / "cosine.light.png").exists()
    assert (folder / "out" / "mask_iou.light.png").exists()
    assert {"cosine.npz", "mask_iou.npz", "notes.txt"} <= {p.name for p in (folder / "out").iterdir()}


def test_a_file_says_the_same_as_options(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "analysis.toml").write_text("""
        base = "../base.safetensors"
        finetuned = ["../ones.safetensors", "../twos.safetensors"]
        tasks = ["../ones.npz", "../twos.npz"]
        heads = ["../ones_head.safetensors", "../twos_head.safetensors"]
        output = "../out"
        device = "cpu"
        figures = false
        [parameters]
        points = 3
    """)
    run("disentanglement", "--config", "sub/analysis.toml")
    run("disentanglement", *RUNS["disentanglement"], "-o", "again", "--device", "cpu", "--no-figures")
    one, two = (np.load(folder / where / "disentanglement.npz")["error"] for where in ("out", "again"))
    np.testing.assert_array_equal(one, two)


def test_the_list_names_every_kind_with_its_parameters():
    said = run("--list")
    for name, kind in KINDS.items():
        assert f"{name}: {kind.title}" in said and kind.paper in said
        assert all(f"{parameter}=" in said for parameter in kind.parameters)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cosines", *BASE, *MODELS), "kind must be one of .*; got 'cosines'; did you mean 'cosine'"),
        (("cosine", *BASE), "cosine needs base and at least 1 models or task vectors; got 0 models"),
        (("cosine", *BASE, *MODELS, *TASKS), "cosine takes no tasks, got 2"),
        (("cosine", *BASE, *MODELS, *MASKS), "cosine takes no masks, got 2"),
        (("mask_iou", *MASKS[:2]), "mask_iou needs at least 2 masks; got 0 models, 1 masks"),
        (("prune", *TASKS, *MASKS), "prune needs base, .*; got no base"),
        (("disentanglement", *BASE, *MODELS, *TASKS[:4]), "got 2 models and 1 tasks"),
        (("localization", *BASE, *MODELS, *TASKS[:2]), "tasks and heads must come in pairs, got 1 and 0"),
        (("radar", *BASE, *MODELS, MODELS[0], *TASKS), "got 3 models and 2 tasks"),
        (("radar", *BASE, *MODELS, *MODELS, *TASKS), "recipes must be different names, one for 2 of 4 models"),
        (("localization", *BASE, *MODELS, *TASKS, "-p", "scales=1"), "has the parameters scale; got 'scales'"),
        (("localization", *BASE, *MODELS, *TASKS, "-p", "scale=big"), "scale must be like 1.0, got 'big'"),
        (("lambda_curve", *BASE, *MODELS, *TASKS, "-p", 'scales=["a"]'), "scales must be like"),
        (("lambda_curve", *BASE, *MODELS, *TASKS, "-p", "method=tiez"), "method must be one of"),
        (("disentanglement", *BASE, *MODELS, *TASKS, "-p", "points=0"), "points must be at least 1"),
        (("disentanglement", *BASE, *MODELS, *TASKS, "-p", "pair=[0,5]"), "pair must be two different places"),
        (("localization", *BASE, *MODELS, *TASKS, "--split", "all"), "split must be one of .*; got 'all'"),
        (("rank_sweep", *RUNS["rank_sweep"], "--linearized"), "linearized models are for .*; got rank_sweep"),
        (("rank_sweep", *BASE, *MODELS, *TASKS, "-p", "rank_ratios=[2]"), r"rank_ratios must be in \[0, 1\]"),
        (("localization", *BASE, "ones_masks.safetensors", *TASKS), "got masks; hand them to --masks"),
        (("localization", "nothing.safetensors", *MODELS, *TASKS), "nothing.safetensors"),
        (("localization", *BASE, "ones_head.safetensors", *TASKS), r"vectors\[0\]"),
        (("mask_share", "--masks", "base.safetensors"), "expected masks written by Masks.save"),
        (("localization", *BASE, *MODELS, *TASKS[:4], *TASKS[:4]), "tasks must have different names, got ones, ones"),
        (("cosine", "--config", "no.toml"), "no.toml: cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_cost_one_line_and_no_output(folder, words, message, monkeypatch):
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", None)  # no image goes through a model
    with pytest.raises(TaskarithError, match=message) as error:
        run(*words, *OUT) if "--config" not in words else run(*words)
    assert "\n" not in str(error.value) and not (folder / "out").exists()


def test_an_output_is_needed(folder):
    with pytest.raises(ArgumentError, match="--output is missing"):
        run("cosine", *RUNS["cosine"])
    with pytest.raises(CheckpointError, match=r"base.safetensors: output must be a folder, got a file"):
        run("cosine", *RUNS["cosine"], "-o", "base.safetensors")


def test_the_documentation_has_a_section_for_every_kind():
    page = (Path(__file__).resolve().parents[2] / "docs" / "analyses.md").read_text()
    sections = [name for line in page.splitlines() if line.startswith("## ") for name in line[3:].split(", ")]
    assert sorted(sections) == sorted(KINDS)
