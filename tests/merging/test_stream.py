"""The streaming engine: the bytes of the merge in memory, however it is cut."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging.plan import plan_merge
from tests.merging.stream_cases import (
    assert_same_bytes,
    in_memory,
    make_models,
    make_statistics,
    read_output,
    write_models,
    write_statistics,
)

BIG = [(300, 257), (65, 5, 7), (50_001,), (), (0,), (3, 0), (12,), (2, 40_000)]
TIES = [
    {"density": 0.2},
    {"density": 0.3, "count_rule": "official"},
    {"density": 0.3, "count_rule": "talos"},
    {"density": 1.0, "combine": "sum"},
    {"density": 0.4, "elect": "normfrac"},
    {"density": 0.4, "elect": "normmass", "combine": "max"},
    {"density": 0.4, "elect": "count", "combine": "max"},
    {"density": 0.4, "elect": "count", "zero_sign": "zero"},
    {"density": 0.2, "scope": "tensor"},
    {"density": 0.2, "scope": "row", "elect": "count"},
    {"density": 0.2, "scope": "row", "elect": "normmass"},
]
OTHERS = [
    ("average", {}),
    ("task_arithmetic", {"scale": [0.3, -0.5, 0.2]}),
    ("dare", {"seed": 3}),
    ("dare+ties", {}),
    ("dare+ties", {"density": 0.5, "ties_density": 0.2, "seed": 7}),
    ("dare+ties", {"density": 0.5, "ties_density": 0.3, "rescale": False, "elect": "normmass"}),
    ("dare+ties", {"density": 0.3, "ties_density": 0.1, "scope": "row", "count_rule": "official"}),
    ("breadcrumbs", {}),
    ("breadcrumbs", {"scope": "tensor"}),
    ("consensus", {}),
    ("fisher", {"weights": [1, 0.5, 2], "floor": 0.0}),
    ("fisher", {"normalize": True, "floor": 1e-9, "floor_rule": "add"}),
    ("regmean", {}),
    ("regmean", {"off_diagonal": 1.0}),
]


@pytest.fixture(scope="module", params=[("F32",), ("BF16",), ("F32", "BF16", "F16")], ids="-".join)
def models(request, tmp_path_factory):
    """Models, their files, and the same in shards."""
    states = make_models(BIG, 3, request.param)
    folder = tmp_path_factory.mktemp("models")
    return states, write_models(states, folder), write_models(states, folder, shards=3)


@pytest.mark.parametrize(("method", "parameters"), [*(("ties", p) for p in TIES), *OTHERS], ids=str)
def test_any_cut_gives_the_bytes_of_the_merge_in_memory(method, parameters, models, tmp_path):
    states, files, shards = models
    statistics = make_statistics(method, states)
    expected = in_memory(states, method, **parameters, **statistics)
    parameters = parameters | write_statistics(statistics, tmp_path)
    for i, (paths, memory) in enumerate([(files, None), (files, "1MB"), (shards, 100_000)]):
        out = tmp_path / f"{i}.safetensors"
        ta.merge_files(paths[0], paths[1:], out, method=method, memory=memory, hash_inputs=False, **parameters)
        assert_same_bytes(read_output(out), expected)


@pytest.mark.parametrize("order", ["largest", "smallest"])
def test_matrices_are_decomposed_whole(order, tmp_path):
    g = torch.Generator().manual_seed(0)
    base = {"attn.w": torch.randn(48, 40, generator=g), "mlp.c_fc.weight": torch.randn(64, 48, generator=g)}
    base["token"] = torch.randn(400, 300, generator=g)
    states = [base] + [{k: v + 0.1 * torch.randn(v.shape, generator=g) for k, v in base.items()} for _ in range(2)]
    paths = write_models(states, tmp_path)
    ta.merge_files(paths[0], paths[1:], tmp_path / "out", method="cart", memory="200KB", scale=2.0, order=order)
    assert_same_bytes(read_output(tmp_path / "out"), in_memory(states, "cart", scale=2.0, order=order))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bytes_do_not_depend_on_threads_or_shards(threads, models, tmp_path):
    states, files, _ = models
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ta.merge_files(files[0], files[1:], tmp_path / "out", method="ties", shard_size=60_000 * threads)
    finally:
        torch.set_num_threads(before)
    assert_same_bytes(read_output(tmp_path / "out"), in_memory(states, "ties"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_output_has_the_chosen_dtype(dtype, models, tmp_path):
    states, files, _ = models
    ta.merge_files(files[0], files[1:], tmp_path / "out.safetensors", method="ties", dtype=dtype)
    assert_same_bytes(read_output(tmp_path / "out.safetensors"), in_memory(states, "ties", getattr(torch, dtype)))


@st.composite
def _models(draw):
    side = st.integers(0, 9)
    shapes = draw(st.lists(st.lists(side, max_size=3).map(tuple), min_size=1, max_size=6))
    dtypes = draw(st.lists(st.sampled_from(["F32", "BF16", "F16"]), min_size=1, max_size=3, unique=True))
    states = make_models(
        shapes, draw(st.integers(1, 4)), tuple(dtypes), draw(st.integers(0, 99)), 1.0, draw(st.booleans())
    )
    return states, draw(st.integers(1, 3))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=_models(),
    method=st.sampled_from(["average", "task_arithmetic", "ties"]),
    shard_size=st.none() | st.integers(1, 2000),
)
def test_every_planned_tensor_is_written(case, method, shard_size, tmp_path_factory):
    states, shards = case
    folder = tmp_path_factory.mktemp("p")
    paths = write_models(states, folder, shards)
    plan = plan_merge(paths[0], paths[1:], folder / "out", method=method, shard_size=shard_size)
    assert not plan.problems and set(plan.entries) == set(states[0])
    ta.merge_files(paths[0], paths[1:], folder / "out", method=method, shard_size=shard_size, memory=1000)
    assert_same_bytes(read_output(folder / "out"), in_memory(states, method))
    loaded = ta.load_state_dict(folder / "out")
    assert set(loaded) == set(states[0])


def test_undecided_pieces_are_merged_again_by_the_majority(tmp_path):
    g = torch.Generator().manual_seed(1)
    base = {"a": torch.zeros(40_000), "b": torch.zeros(40_000)}
    one = {k: torch.randint(-2, 2, (40_000,), generator=g).float() for k in base}
    two = {k: torch.randint(-2, 2, (40_000,), generator=g).float() for k in base}
    paths = write_models([base, one, two], tmp_path)
    for combine in ("mean", "max"):
        out = tmp_path / f"{combine}.safetensors"
        ta.merge_files(paths[0], paths[1:], out, method="ties", density=0.9, combine=combine, memory="200KB")
        assert_same_bytes(read_output(out), in_memory([base, one, two], "ties", density=0.9, combine=combine))


def test_a_bracket_that_misses_is_searched_again(models, tmp_path, monkeypatch):
    states, files, _ = models
    for wrong in ((0, 5), (0x7F7F0000, 0x7F7F0001), (0, 0x7F800001)):
        monkeypatch.setattr(
            "taskarith_fast.merging.ties_threshold._brackets", lambda plan, rank, sample, w=wrong: [w] * 3
        )
        ta.merge_files(files[0], files[1:], tmp_path / "o.safetensors", method="ties", overwrite=True)
        assert_same_bytes(read_output(tmp_path / "o.safetensors"), in_memory(states, "ties"))


@pytest.mark.parametrize("method", ["average", "ties", "dare+ties"])
def test_a_value_that_is_not_finite_is_named_and_nothing_is_written(method, tmp_path):
    states = make_models([(300, 257), (4,)], 2)
    states[2]["a0"][200, 7] = torch.nan
    states[2]["a0"][299, 256] = -torch.inf
    paths = write_models(states, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"a0: .* got 2 NaN or Inf in finetuned\[1\], the first at \[200, 7\]"):
        ta.merge_files(paths[0], paths[1:], tmp_path / "out.safetensors", method=method, memory="1MB")
    assert sorted(tmp_path.iterdir()) == before


def test_integers_that_differ_are_refused(tmp_path):
    states = make_models([(4,)], 2)
    states[1]["ids"] = torch.zeros(1, 5, dtype=torch.int64)
    paths = write_models(states, tmp_path)
    with pytest.raises(CheckpointError, match=r"ids: torch.int64 tensors are copied .* finetuned\[0\] differs"):
        ta.merge_files(paths[0], paths[1:], tmp_path / "out.safetensors")


def test_a_torch_file_is_merged_like_any_other(tmp_path):
    states = make_models([(40, 3), (4,)], 2)
    states[0]["tied"] = states[0]["a0"]
    for state in states[1:]:
        state["tied"] = state["a0"].clone()
    torch.save({"state_dict": states[0]}, tmp_path / "base.pt")
    paths = write_models([{k: v.clone() for k, v in s.items()} for s in states[1:]], tmp_path)
    plan = plan_merge(tmp_path / "base.pt", paths, tmp_path / "o.safetensors")
    assert any("tied is a0" in note for note in plan.notes)
    assert any("finetuned[1] holds tied apart from a0: they must be equal" in note for note in plan.notes)
    ta.merge_files(tmp_path / "base.pt", paths, tmp_path / "o.safetensors", method="ties")
    expected = in_memory(states, "ties")
    assert expected.pop("tied") is expected["a0"]
    assert_same_bytes(read_output(tmp_path / "o.safetensors"), expected)


def test_a_directory_has_index_manifest_card_and_configuration(models, tmp_path):
    _, files, shards = models
    (shards[0] / "config.json").write_text("{}")
    report = ta.merge_files(shards[0], files[1:], tmp_path / "out", method="average", shard_size="200KB")
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    names = {p.name for p in out.iterdir()}
    assert {"README.md", "config.json", *index["weight_map"].values()} <= names and len(names) > 5
    for file in set(index["weight_map"].values()):
        with safe_open(out / file, "pt") as handle:
            assert set(handle.keys()) == {k for k, v in index["weight_map"].items() if v == file}
            assert json.loads(handle.metadata()["taskarith"]) == report and handle.metadata()["format"] == "pt"
    assert report["copied"] == ["flag", "ids"] or set(report["copied"]) == {"flag", "ids"}
    with pytest.raises(CheckpointError, match="exists already"):
        ta.merge_files(files[0], files[1:], out)
    ta.merge_files(files[0], files[1:], out, overwrite=True, hash_inputs=False, card=False)
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_input_may_be_replaced_by_the_output(tmp_path):
    states = make_models([(300, 257)], 2)
    paths = write_models(states, tmp_path)
    ta.merge_files(paths[0], paths[1:], paths[0], method="ties", overwrite=True)
    assert_same_bytes(read_output(paths[0]), in_memory(states, "ties"))


def test_a_foreign_directory_is_never_replaced(tmp_path):
    paths = write_models(make_models([(4,)], 1), tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="more than a checkpoint"):
        ta.merge_files(paths[0], paths[1:], tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_an_input_that_changes_meanwhile_is_an_error(tmp_path):
    states = make_models([(9,)], 1)
    paths = write_models(states, tmp_path)
    plan = plan_merge(paths[0], paths[1:], tmp_path / "o.safetensors")
    save_file(states[0] | {"more": torch.ones(2)}, paths[1])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        plan.sources[1].read("a0", 0, memoryview(bytearray(36)))


def test_a_device_that_is_absent_is_refused(tmp_path):
    paths = write_models(make_models([(4,)], 1), tmp_path)
    for device in ("cuda:99" if not torch.cuda.is_available() else "meta", "tpu"):
        with pytest.raises(ArgumentError, match="device"):
            ta.merge_files(paths[0], paths[1:], tmp_path / "o.safetensors", device=device)
