"""Fisher merging against the formula in float64, and what it does where nothing is known."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import taskarith_fast as ta
from taskarith_fast.cli import app
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging.fisher import fisher
from taskarith_fast.merging.plan import plan_merge
from tests.merging.stream_cases import make_models, write_models, write_statistics

SHAPES = [(300, 257), (31,), ()]


def _case(tasks=3, dtype="F32"):
    base, *models = make_models(SHAPES, tasks, (dtype,), spread=1.0, integers=False)
    g = torch.Generator().manual_seed(1)
    fishers = [{k: torch.rand(v.shape, generator=g) ** 8 * 1e-4 for k, v in base.items()} for _ in models]
    return base, models, fishers


def _truth(models, fishers, coefficients, name, floor=lambda f: f):
    """sum_t c_t F_t theta_t / sum_t c_t F_t, in float64."""
    needs = [c * floor(f[name].double()) for c, f in zip(coefficients, fishers, strict=True)]
    return sum(n * m[name].double() for n, m in zip(needs, models, strict=True)) / sum(needs)


def _assert_rounded_once(found, truth):
    """Half a unit in the last place, and the rounding of the truth itself where its terms cancel."""
    info = torch.finfo(found.dtype)
    unit = info.eps * truth.abs().clamp_min(info.smallest_normal)
    assert bool(((found.double() - truth).abs() <= 0.5001 * unit + 1e-14).all())


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.5]])
def test_equals_the_formula_rounded_once(dtype, weights):
    base, models, fishers = _case(dtype=dtype)
    for parameters, floor in (
        ({"floor": 0.0}, lambda f: f),
        ({"floor": 1e-5}, lambda f: f.clamp_min(1e-5)),
        ({"floor": 1e-5, "floor_rule": "add"}, lambda f: f + 1e-5),
    ):
        merged = fisher(base, models, fishers=fishers, weights=weights, **parameters)
        for name in base:
            _assert_rounded_once(merged[name], _truth(models, fishers, weights or [1, 1, 1], name, floor))


def test_normalized_weights_are_divided_by_the_norm_over_all_tensors():
    base, models, fishers = _case()
    norms = [math.sqrt(sum(float(x.double().square().sum()) for x in f.values())) for f in fishers]
    merged = fisher(base, models, fishers=fishers, normalize=True, floor=0.0)
    for name in base:
        _assert_rounded_once(merged[name], _truth(models, fishers, [1 / n for n in norms], name))
    scaled = [fishers[0], {k: 64 * v for k, v in fishers[1].items()}, fishers[2]]
    again = fisher(base, models, fishers=scaled, normalize=True, floor=0.0)
    assert all(torch.equal(merged[name], again[name]) for name in base)
    known = fisher(base, models, fishers=fishers, normalize=norms, floor=0.0)
    torch.testing.assert_close(known, merged, rtol=1e-6, atol=0)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("normalize", [False, True])
def test_where_no_task_needs_a_weight_the_mean_results(floor, normalize):
    base, models, fishers = _case()
    for f in fishers:
        f["a0"][7:90] = 0
    fishers[0]["a0"] *= 1000
    merged = fisher(base, models, fishers=fishers, weights=[1, 2, 5], floor=floor, normalize=normalize)["a0"]
    mean = sum(w * m["a0"].double() for w, m in zip([1, 2, 5], models, strict=True)) / 8
    _assert_rounded_once(merged[7:90], mean[7:90])
    assert not torch.allclose(merged[:7].double(), mean[:7], atol=1e-4)


def test_a_task_that_alone_needs_a_weight_decides_it():
    base, models, fishers = _case()
    for t, f in enumerate(fishers):
        f["b1"].zero_()
        f["b1"][t::3] = 1e-12
    merged = fisher(base, models, fishers=fishers, floor=0.0)
    for t, model in enumerate(models):
        assert torch.equal(merged["b1"][t::3], model["b1"][t::3])


def test_equal_fishers_give_the_mean_and_one_task_itself():
    base, models, fishers = _case()
    same = fisher(base, models, fishers=[fishers[0]] * 3)
    for name in base:
        _assert_rounded_once(same[name], sum(m[name].double() for m in models) / 3)
    alone = fisher(base, models[:1], fishers=fishers[:1])
    assert all(torch.equal(alone[name], models[0][name]) for name in base)


def test_a_tensor_without_fisher_is_averaged_only_when_told():
    base, models, fishers = _case()
    for f in fishers:
        del f["b1"]
    with pytest.raises(CheckpointError, match=r"fishers lack b1; pass missing='average'"):
        fisher(base, models, fishers=fishers)
    merged = fisher(base, models, fishers=fishers, missing="average", weights=[1, 2, 1])
    _assert_rounded_once(merged["b1"], (models[0]["b1"].double() + 2 * models[1]["b1"] + models[2]["b1"]) / 4)
    del fishers[1]["a0"]
    with pytest.raises(CheckpointError, match=r"fishers\[1\] lacks, unlike another task's, a0"):
        fisher(base, models, fishers=fishers, missing="average")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[1]["a0"][2:3, 3].fill_(-0.5), r"a0: fishers\[1\] must be finite and not negative, got -0.5"),
        (lambda f: f[2]["b1"][0:1].fill_(math.nan), r"b1: fishers\[2\] must be finite and not negative, got nan"),
        (lambda f: f[0]["b1"][0:1].fill_(math.inf), r"b1: fishers\[0\] must be finite and not negative, got inf"),
        (lambda f: f[0].update(b1=torch.ones(30)), r"b1: shape in fishers\[0\] must be \[31\], got \[30\]"),
        (lambda f: f[0].update(b1=torch.ones(31).int()), r"b1: fishers\[0\] must hold floating-point values, got I32"),
        (lambda f: f[0].update(other=torch.ones(3)), r"fishers\[0\] has, unlike the models, other"),
        (lambda f: [x.zero_() for x in f[1].values()], r"fishers\[1\] is 0 everywhere"),
    ],
)
def test_a_fisher_that_cannot_be_one_is_refused_by_name(change, message, tmp_path):
    base, models, fishers = _case()
    change(fishers)
    with pytest.raises(CheckpointError, match=message):
        fisher(base, models, fishers=fishers, normalize=True)
    paths = write_models([base, *models], tmp_path)
    files = write_statistics({"fishers": fishers}, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        ta.merge_files(paths[0], paths[1:], tmp_path / "o.safetensors", method="fisher", normalize=True, **files)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fishers": []}, r"fishers must be a list of 3 \(one a task\), got 0; made by ta.fisher_diagonal"),
        ({"fishers": {}}, r"fishers must be a list of 3 \(one a task\), got dict"),
        ({"fishers": ["a", "b", "c"]}, r"fishers\[0\] must map names to tensors, got str; open a file by"),
        ({"weights": [1, 1]}, r"weights must be one number or 3 \(one a task\), got 2"),
        ({"weights": [1, -1, 1]}, r"weights must be 3 finite numbers that are not negative, got \[1.0, -1.0, 1.0\]"),
        ({"weights": [0, 0, 0]}, r"weights must not all be 0"),
        ({"normalize": [1, 0, 1]}, r"norms must be above 0, got \[1.0, 0.0, 1.0\]"),
        ({"floor": -1.0}, "floor must be finite and not negative, got -1.0"),
        ({"floor_rule": "min"}, "floor_rule must be one of max, add; got 'min'"),
        ({"missing": "skip"}, "missing must be one of error, average; got 'skip'"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    base, models, fishers = _case()
    with pytest.raises(ArgumentError, match=message):
        fisher(base, models, **{"fishers": fishers, **parameters})


def test_files_record_their_fishers_and_need_no_memory_a_task(tmp_path):
    base, models, fishers = _case(tasks=2)
    paths = write_models([base, *models], tmp_path)
    files = write_statistics({"fishers": fishers}, tmp_path)["fishers"]
    out = tmp_path / "o.safetensors"
    report = ta.merge_files(paths[0], paths[1:], out, method="fisher", fishers=files, normalize=True)
    assert [f["name"] for f in report["fishers"]] == ["fishers0.safetensors", "fishers1.safetensors"]
    assert all(len(f["sha256"]) == 64 for f in report["fishers"]) and "fishers" not in report["parameters"]
    with safe_open(out, "pt") as handle:
        stored = handle.metadata()["taskarith"]
    assert json.loads(stored) == report and str(tmp_path) not in stored
    arguments = {"method": "fisher", "memory": "8MB"}
    small, large = (
        plan_merge(paths[0], t * [paths[1]], tmp_path / "p.safetensors", fishers=t * files[:1], **arguments)
        for t in (2, 20)
    )
    assert not small.problems and large.buffer_bytes < 8.4e6
    twice = plan_merge(paths[0], paths[1:], tmp_path / "p.safetensors", fishers=files, normalize=True, **arguments)
    assert twice.read_bytes - small.read_bytes == 2 * 4 * sum(v.numel() for v in base.values())


def test_a_plan_lists_what_is_wrong_with_the_fishers_and_what_has_none(tmp_path):
    base, models, fishers = _case(tasks=2)
    paths = write_models([base, *models], tmp_path)
    for f in fishers:
        del f["b1"]
    files = write_statistics({"fishers": fishers}, tmp_path)["fishers"]

    def plan(**parameters):
        return plan_merge(paths[0], paths[1:], tmp_path / "o.safetensors", method="fisher", **parameters)

    assert "fishers lack b1" in plan(fishers=files).lines()[0]
    assert any("no fishers: b1" in note for note in plan(fishers=files, missing="average").notes)
    assert "no such checkpoint" in plan(fishers=[files[0], "nowhere.safetensors"]).lines()[0]
    assert "fishers must be a list of 2 (one a task), got 1" in plan(fishers=files[:1]).lines()[0]
    assert "fishers must be paths when files are merged, got dict" in plan(fishers=fishers).lines()[0]
    assert len(plan(fishers=files, floor=-1.0).problems) == 2


def test_a_recipe_finds_its_fishers_beside_it(tmp_path):
    base, models, fishers = _case(tasks=2)
    write_models([base, *models], tmp_path)
    write_statistics({"fishers": fishers}, tmp_path)
    (tmp_path / "r.toml").write_text(
        'base = "m0.safetensors"\nfinetuned = ["m1.safetensors", "m2.safetensors"]\noutput = "o.safetensors"\n'
        'method = "fisher"\n[parameters]\nfishers = ["fishers0.safetensors", "fishers1.safetensors"]\n'
    )
    from taskarith_fast.merging import read_recipe

    ta.merge_files(**read_recipe(tmp_path / "r.toml"))
    merged = ta.load_state_dict(tmp_path / "o.safetensors")
    expected = fisher(base, models, fishers=fishers)
    assert all(torch.equal(merged[name], expected[name]) for name in base)


def test_the_command_line_takes_fishers_as_a_list_of_paths(tmp_path):
    base, models, fishers = _case(tasks=2)
    paths = write_models([base, *models], tmp_path)
    files = write_statistics({"fishers": fishers}, tmp_path)["fishers"]
    listed = json.dumps([str(file) for file in files])
    arguments = ["merge", *map(str, paths), "-o", str(tmp_path / "o.safetensors"), "-m", "fisher"]
    done = CliRunner().invoke(app, [*arguments, "-p", f"fishers={listed}", "-p", "normalize=true"])
    assert done.exit_code == 0 and "3 tensors, fisher weights=None, normalize=True" in done.output
