"""Plans: every problem from headers alone, what is foretold, and recipes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from taskarith_fast.errors import ArgumentError, TaskarithError
from taskarith_fast.merging.checks import parse_size
from taskarith_fast.merging.plan import plan_merge
from taskarith_fast.merging.recipe import check_recipe, read_recipe
from tests.merging.stream_cases import make_models, write_models

RECIPE = """
base = "m0.safetensors"
finetuned = ["m1.safetensors", "m2.safetensors"]
output = "out/merged"
method = "ties"
shard_size = "100KB"

[parameters]
density = 0.3
"""


@pytest.fixture
def paths(tmp_path):
    return write_models(make_models([(300, 257), (31,)], 2), tmp_path)


def test_a_sound_merge_has_no_problem_and_a_forecast(paths, tmp_path):
    plan = plan_merge(paths[0], paths[1:], tmp_path / "o.safetensors", method="ties", memory="8MB")
    floats = 4 * (300 * 257 + 31)
    assert not plan.problems and plan.passes == 2 and plan.read_bytes == 2 * 3 * floats + 3 * 41
    assert plan.hash_bytes == sum(p.stat().st_size for p in paths)
    assert floats < plan.write_bytes < floats + 100_000
    assert plan.buffer_bytes <= 9e6 and plan.peak_bytes > plan.buffer_bytes and plan.seconds > 0
    assert any("flag" in line and "ids" in line for line in plan.lines())
    assert plan_merge(paths[0], paths[1:], tmp_path / "o.safetensors", method="ties", density=1.0).passes == 1


def test_memory_does_not_grow_with_the_number_of_tasks(tmp_path):
    paths = write_models(make_models([(1000, 700)] * 2, 1), tmp_path)
    plans = [
        plan_merge(paths[0], [paths[1]] * t, tmp_path / "o.safetensors", method=method, memory="8MB")
        for t in (2, 20)
        for method in ("average", "ties", "dare", "dare+ties", "breadcrumbs", "consensus")
    ]
    assert all(5e6 < plan.buffer_bytes <= 8.4e6 for plan in plans), [plan.buffer_bytes for plan in plans]


def test_every_problem_is_listed(paths, tmp_path):
    state = {"a0": torch.ones(300, 256), "zzz": torch.ones(2), "ids": torch.zeros(1, 5), "flag": torch.tensor(True)}
    save_file(state, paths[1])
    (tmp_path / "o.safetensors").write_text("mine")
    arguments = {"method": "ties", "density": 7}
    plan = plan_merge(paths[0], paths[1:], tmp_path / "o.safetensors", **arguments)
    text = "\n".join(plan.lines())
    for part in ("density", "exists already", "lacks b1", "has, unlike base, zzz", "a0: shape", "ids: dtype"):
        assert part in text, part
    with pytest.raises(TaskarithError, match=r"density.*and 5 more problems: taskarith check"):
        plan.raise_first()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"scale": "much"}, "scale|wrong type"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"memory": "much"}, "memory must be a number of bytes"),
        ({"shard_size": 0}, "shard_size must be at least one byte"),
        ({"output": "o.bin"}, "must end in .safetensors"),
        ({"output": "o.safetensors", "shard_size": 10}, "must be a directory"),
        ({"base": "nowhere.safetensors"}, "no such checkpoint"),
        ({"finetuned": []}, "got none"),
    ],
)
def test_a_problem_is_named(change, message, paths, tmp_path):
    arguments = {"base": paths[0], "finetuned": paths[1:], "output": tmp_path / "o", **change}
    plan = plan_merge(arguments.pop("base"), arguments.pop("finetuned"), arguments.pop("output"), **arguments)
    with pytest.raises(TaskarithError, match=message):
        plan.raise_first()


def test_a_disk_without_room_is_a_problem(paths, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    plan = plan_merge(paths[0], paths[1:], tmp_path / "o.safetensors")
    assert "of free disk, 1.0 kB are left" in plan.lines()[0]


def test_sizes_are_read_as_people_write_them():
    assert [parse_size("x", s) for s in (7, "7", "2KB", "1.5 MB", "1GiB")] == [7, 7, 2000, 1_500_000, 2**30]
    for wrong in ("", "GB", "-1", "1e999", True, 0, "3 XB"):
        with pytest.raises(ArgumentError, match="x must be"):
            parse_size("x", wrong)


def test_a_recipe_is_checked_from_its_own_directory(paths, tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    plan = check_recipe(tmp_path / "r.toml")
    assert not plan.problems and plan.parameters["density"] == 0.3 and len(plan.shards) == 3
    assert plan.output == tmp_path / "out" / "merged"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = ", "no valid TOML"),
        ('base = "a"', "finetuned: field required"),
        (RECIPE + "\n[other]\n", "other: .*known keys: base"),
        (RECIPE.replace('"ties"', "3"), "method: "),
        (RECIPE + "dtype = 'float32'", "dtype is no parameter of a method"),
        ("\x00", "no valid TOML"),
    ],
)
def test_a_recipe_that_is_wrong_is_one_line(text, message, tmp_path):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ArgumentError, match=message) as error:
        read_recipe(tmp_path / "r.toml")
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=80), at=st.integers(0, len(RECIPE)))
def test_mutated_recipes_give_typed_errors_only(data, at, tmp_path_factory):
    path = tmp_path_factory.mktemp("r") / "r.toml"
    path.write_bytes(RECIPE.encode()[:at] + data + RECIPE.encode()[at + 1 :])
    try:
        check_recipe(path)
    except ArgumentError as error:
        assert str(error)
