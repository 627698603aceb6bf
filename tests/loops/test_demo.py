import dataclasses
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from taskarith_fast import data
from taskarith_fast.analysis.results import Results
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig, ProbeConfig
from taskarith_fast.loops.demo import limit_tasks, run_demo, run_stages, run_study
from taskarith_fast.loops.demo_config import PRESETS, DemoConfig, choose_preset
from taskarith_fast.loops.demo_plan import make_plan
from taskarith_fast.loops.demo_stages import Workshop
from taskarith_fast.loops.linearized import LinearizedEvaluator
from taskarith_fast.loops.runtime import threads
from taskarith_fast.loops.stages import Store
from taskarith_fast.models import VisionTransformer, VitConfig

STEPS = FinetuneConfig(steps=2, batch_size=8, lr=1e-3, warmup=0, device="cpu")
TINY = DemoConfig(
    preset="tiny",
    probe=ProbeConfig(solver="lbfgs", device="cpu"),
    recipes={"full": STEPS},
    task_arithmetic_scales=(0.0, 0.5, 1.0),
    ties_scales=(0.0, 1.0),
    cart_rank_ratios=(0.25, 0.5),
    cart_scales=(1.0, 2.0),
)


def _split(images, classes, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    pixels = random.integers(0, 60, (images, 16, 16, 3)) + (180 * labels // classes)[:, None, None, None]
    return data.ArraySplit(pixels.astype(np.uint8), labels)


def _task(name, classes, seed):
    splits = {split: _split(24, classes, seed + i) for i, split in enumerate(("train", "val", "test"))}
    return data.Task(name, tuple(map(str, range(classes))), splits, licence="CC0-1.0", source="drawn at random")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are too small for more, and waiting for a second thread would be most of the time."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def tasks():
    return {"two": _task("two", 2, 0), "three": _task("three", 3, 10)}


def make_encoder():
    torch.manual_seed(0)
    config = VitConfig(image_size=16, patch_size=8, position_grid=2, width=16, depth=1, heads=2, final_norm=False)
    return VisionTransformer(config)


@pytest.fixture
def encoder():
    return make_encoder()


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _tensors(files):
    return {name: content for name, content in files.items() if name.endswith(".safetensors")}


def _recomputed(config, encoder, tasks, out):
    """Run the stages again; names of those that were not reused."""
    plan = make_plan(config, encoder, tasks)
    _, reused = run_stages(plan, Store(out / "stages"), Workshop(encoder, tasks))
    return {stage.name for stage in plan.stages if stage.key not in reused}


def _methods(results):
    return [(row.recipe, row.method) for row in results.rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tasks):
    out = tmp_path_factory.mktemp("demo")
    run_study(TINY, make_encoder(), tasks, out)
    return out


@pytest.fixture
def done(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "demo"))


def test_writes_results_figures_and_a_page(done):
    results = Results.load(done / "results.json")
    merged = ["average", "task_arithmetic", "ties", "cart"]
    assert _methods(results) == [("", "probe"), *(("full", m) for m in ("individual", *merged))]
    assert {p.name for p in (done / "figures").iterdir()} == {
        f"{name}.{theme}.png"
        for name in ("accuracy-full", "lambda-full", "cosine-full", "cart-grid-full", "rank-full", "tasks")
        for theme in ("light", "dark")
    }
    assert "TIES" in (done / "report.html").read_text()
    assert "TIES" in (done / "table.md").read_text()
    assert not list(done.rglob(".*")), "a temporary file was left"


def test_accuracies_come_from_the_stored_correctness(done):
    results = Results.load(done / "results.json")
    for row in results.rows:
        for measured in row.accuracy.values():
            assert measured.value * 24 == pytest.approx(round(measured.value * 24))
            assert measured.stderr == pytest.approx((measured.value * (1 - measured.value) / 24) ** 0.5)
        assert row.mean.value == pytest.approx(sum(m.value for m in row.accuracy.values()) / 2)
    assert results.row("individual", "full").normalized_mean.value == 1
    assert results.row("probe", "full").over_probe.value == 0


def test_scale_zero_of_task_arithmetic_is_the_linear_probe(done):
    results = Results.load(done / "results.json")
    arithmetic, ties = results.curves.scale
    assert arithmetic.scale == [0.0, 0.5, 1.0]
    assert arithmetic.val_mean[0] == ties.val_mean[0]


def test_full_rank_of_cart_is_the_average(done):
    results = Results.load(done / "results.json")
    (curve,) = results.curves.cart_rank
    assert curve.rank_ratio == [0.25, 0.5, 1.0]
    assert curve.test_mean[-1] == results.row("average", "full").mean.value
    place = curve.rank_ratio.index(curve.chosen_rank_ratio[0])
    assert curve.test_mean[place] == results.row("cart", "full").mean.value


def test_the_chosen_point_has_the_best_validation_score(done):
    for curve in Results.load(done / "results.json").curves.scale:
        assert curve.chosen == [curve.scale[int(np.argmax(curve.val_normalized))]]


def test_nothing_written_names_the_machine_or_a_path(done):
    for name in ("results.json", "report.html", "table.md"):
        text = (done / name).read_text()
        for secret in (platform.node(), str(Path.home()), str(done), str(Path(data.__file__).parent)):
            assert len(secret) < 4 or secret not in text, name


def test_second_run_reuses_every_stage(done, encoder, tasks):
    first = _files(done)
    before = Results.load(done / "results.json")
    run_study(TINY, encoder, tasks, done)
    after = Results.load(done / "results.json")
    stages = {name: content for name, content in first.items() if name.startswith("stages/")}
    assert stages.items() <= _files(done).items()
    assert all(stage.reused for stage in after.timing) and not any(stage.reused for stage in before.timing)
    assert after.rows == before.rows
    assert [stage.seconds for stage in after.timing] == [stage.seconds for stage in before.timing]


def test_interrupted_run_goes_on_where_it_stopped(done, encoder, tasks):
    stored = _files(done / "stages")
    for path in (done / "stages").glob("merge-*.json"):
        path.unlink()
    merges = {f"merge-{m}-full-seed0" for m in ("average", "task_arithmetic", "ties", "cart")}
    assert _recomputed(TINY, encoder, tasks, done) == merges
    assert _tensors(_files(done / "stages")) == _tensors(stored)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe"])
def test_damaged_stage_is_computed_again(done, encoder, tasks, damage):
    (path,) = (done / "stages").glob("evaluate-probes-*.safetensors")
    content = path.read_bytes()
    path.write_bytes(damage)
    assert _recomputed(TINY, encoder, tasks, done) == {"evaluate-probes"}
    assert path.read_bytes() == content


def test_changed_configuration_recomputes_what_depends_on_it(done, encoder, tasks):
    changed = dataclasses.replace(TINY, ties_scales=(0.0, 0.5))
    assert _recomputed(changed, encoder, tasks, done) == {"merge-ties-full-seed0"}


def test_changed_weights_recompute_everything(done, encoder, tasks):
    with torch.no_grad():
        encoder.class_embedding.add_(1)
    assert len(_recomputed(TINY, encoder, tasks, done)) == len(make_plan(TINY, encoder, tasks).stages)


def test_everything_has_seeds_recipes_and_extra_rows(tmp_path, encoder, tasks):
    recipes = {"full": STEPS, "qkvo": dataclasses.replace(STEPS, recipe="qkvo")}
    config = dataclasses.replace(TINY, seeds=(0, 1), recipes=recipes, extra_rows=True)
    run_study(config, encoder, tasks, tmp_path)
    results = Results.load(tmp_path / "results.json")
    methods = _methods(results)
    assert {("full", "joint"), ("full", "random_head"), ("qkvo", "cart")} < set(methods)
    assert ("qkvo", "random_head") not in methods
    assert all(row.seed_std is not None for row in results.rows if row.method != "probe")
    assert [len(curve.chosen) for curve in results.curves.scale] == [2] * 4
    (path, *_) = (tmp_path / "stages").glob("finetune-qkvo-seed0-two-*.json")
    assert json.loads(path.read_text())["tensors"] == 2, "only what training changed is kept"


def test_sparse_recipes_train_a_tenth_and_every_recipe_can_forget(tmp_path, encoder, tasks):
    recipes = {key: dataclasses.replace(STEPS, recipe=key) for key in ("full", "talos", "lota")}
    config = dataclasses.replace(
        TINY, recipes=recipes, mask_rounds=2, negation_scales=(0.0, 1.0), sparse_negation_scales=(0.5, 2.0)
    )
    run_study(config, encoder, tasks, tmp_path)
    results = Results.load(tmp_path / "results.json")
    full, talos, lota = results.costs
    assert full.trained == sum(p.numel() for p in encoder.parameters())
    assert 0 < talos.trained == lota.trained <= 0.1 * full.trained
    assert 0 < talos.vector_bytes < 0.2 * full.vector_bytes
    assert all(cost.forward_backward > 0 and cost.step > 0 for cost in results.costs)
    assert {r.method for r in results.rows if r.recipe == "talos"} == {"individual", "average", "task_arithmetic"}
    assert [c.scale[-1] for c in results.curves.scale if c.recipe == "lota"] == [pytest.approx(10)]
    assert [(n.recipe, n.target, n.control) for n in results.negation][:2] == [
        ("full", "two", "three"),
        ("full", "three", "two"),
    ]
    assert len(results.negation) == 6
    tried = {s.name: s.settings["scales"] for s in make_plan(config, encoder, tasks).stages if "negate" in s.name}
    assert tried["negate-full-seed0-two"] == [0.0, 1.0] and tried["negate-lota-seed0-two"] == [0.5, 2.0]
    page = (tmp_path / "report.html").read_text()
    assert "Forgetting a task" in page and "What a recipe costs" in page


def test_linearized_rows_scatter_and_sensitivity_come_from_tangents(tmp_path, encoder, tasks):
    recipes = {key: dataclasses.replace(STEPS, recipe=key) for key in ("full", "qkvo", "linearized")}
    config = dataclasses.replace(
        TINY, recipes=recipes, negation_scales=(1.0,), linearized_negation_scales=(0.5, 1.0, 2.0), post_hoc=True,
        sensitivity=("full",), sensitivity_images=8, sensitivity_points=2,
    )  # fmt: skip
    run_study(config, encoder, tasks, tmp_path)
    results = Results.load(tmp_path / "results.json")
    methods = _methods(results)
    assert {("full", "post_hoc"), ("full", "ties"), ("qkvo", "ties")} < set(methods)
    assert [method for recipe, method in methods if recipe == "linearized"] == [
        "individual", "average", "task_arithmetic",
    ]  # fmt: skip
    assert [(c.recipe, c.method) for c in results.curves.scale if c.recipe != "qkvo"] == [
        ("full", "task_arithmetic"), ("full", "post_hoc"), ("full", "ties"), ("linearized", "task_arithmetic"),
    ]  # fmt: skip
    assert len({curve.val_mean[0] for curve in results.curves.scale}) == 1, "scale 0 is the linear probe everywhere"
    assert [(line.recipe, line.task) for line in results.linearity] == [
        ("full", "two"), ("full", "three"), ("qkvo", "two"), ("qkvo", "three"),
    ]  # fmt: skip
    for line in results.linearity:
        assert line.ordinary == results.row("individual", line.recipe).accuracy[line.task]
        assert line.difference.value == pytest.approx(line.linearized.value - line.ordinary.value)
    (curve,) = results.sensitivity
    assert curve.step == [0, 1, 2] and curve.change[0] == 0 and all(c > 0 for c in curve.change[1:])
    assert len([n for n in results.negation if n.recipe == "linearized"]) == 2
    page = (tmp_path / "report.html").read_text()
    assert "How linear fine-tuning is" in page and "Task arithmetic, linearized post hoc" in page
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"linearity.light.png", "linearity.dark.png", "sensitivity.light.png", "sensitivity.dark.png"} <= figures


def test_stored_tangents_are_those_of_the_linearized_encoder(tmp_path, encoder, tasks):
    recipes = {"linearized": dataclasses.replace(STEPS, recipe="linearized")}
    config = dataclasses.replace(TINY, recipes=recipes, negation_scales=(1.0,))
    plan = make_plan(config, encoder, tasks)
    artefacts, _ = run_stages(plan, Store(tmp_path / "stages"), Workshop(encoder, tasks))
    (branch,) = plan.branches
    made = {name: artefacts[stage.key] for name, stage in branch.stages.items()}
    heads = Workshop(encoder, tasks).heads(
        {name: artefacts[s.key] for name, s in branch.stages["individual"].inputs.items() if "probe" in name}
    )
    taus = [{n: end - encoder.state_dict()[n] for n, end in made[f"finetune/{name}"].tensors.items()} for name in tasks]
    for split in ("val", "test"):
        evaluator = LinearizedEvaluator(encoder, heads, {n: t.splits[split] for n, t in tasks.items()}, taus)
        for place, name in enumerate(tasks):
            own = evaluator.evaluate(name, [float(place == i) for i in range(2)])
            assert torch.equal(made["individual"].tensors[f"{split}/{name}"][0].bool(), own.correct)
            mean = evaluator.evaluate(name, [0.5, 0.5])
            assert torch.equal(made["average"].tensors[f"{split}/{name}"][0].bool(), mean.correct)
    chosen = made["negate/two"].facts["chosen"]["scale"]
    test = {n: t.splits["test"] for n, t in tasks.items()}
    forgot = LinearizedEvaluator(encoder, heads, test, taus)([-chosen, 0.0])
    for name in tasks:
        assert torch.equal(made["negate/two"].tensors[f"test/{name}"][1].bool(), forgot[name].correct)


def test_lota_needs_full_fine_tuning_before_it(encoder, tasks):
    config = dataclasses.replace(TINY, recipes={"lota": dataclasses.replace(STEPS, recipe="lota")})
    with pytest.raises(ArgumentError, match="recipes must hold 'full' before 'lota'"):
        make_plan(config, encoder, tasks)


def test_encoder_is_not_changed(encoder, tasks, tmp_path):
    assert _recomputed(TINY, encoder, tasks, tmp_path)
    fresh = make_encoder().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in encoder.state_dict().items())


def test_limits_take_the_same_images_every_time(tasks):
    config = dataclasses.replace(TINY, train=10, val=5, test=30)
    (first, again) = (limit_tasks(tasks, config)["two"] for _ in range(2))
    assert [len(first.splits[s]) for s in ("train", "val", "test")] == [10, 5, 24]
    assert torch.equal(first.splits["train"].get(range(10))[0], again.splits["train"].get(range(10))[0])


def test_presets_exclude_each_other():
    with pytest.raises(ArgumentError, match="exclude each other"):
        choose_preset(quick=True, everything=True, seeds=0)


def test_seeds_override_the_preset():
    assert choose_preset(quick=True, everything=False, seeds=3).seeds == (0, 1, 2)
    assert choose_preset(quick=False, everything=False, seeds=0) == PRESETS["default"]


@pytest.mark.parametrize("arguments", [{"seeds": -1}, {"threads": -1}, {"device": "toaster"}])
def test_bad_arguments_leave_nothing_behind(arguments, tmp_path):
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        run_demo(tmp_path / "demo", **arguments)
    assert not (tmp_path / "demo").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(ArgumentError, match="out must be a folder"):
        run_demo(tmp_path / "demo")
    assert (tmp_path / "demo").read_text() == "mine"
