"""RegMean against least squares on the inputs themselves, and what it does about Grams that are singular."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.plan import plan_merge
from taskarith_fast.merging.regmean import regmean
from tests.merging.stream_cases import assert_same_bytes, write_models, write_statistics

SHAPES = {"attn.in_proj_weight": (90, 30), "mlp.c_fc.weight": (7, 30), "conv1.weight": (8, 3, 2, 2), "ln.bias": (30,)}
INPUTS = {"attn.in_proj_weight": 30, "mlp.c_fc.weight": 30, "conv1.weight": 12}


def _case(tasks=3, rows=200, dtype=torch.float32):
    """base, T models, T mappings name -> inputs [rows, k], correlated as real ones are."""
    g = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    models = [
        {n: (b + 0.1 * torch.randn(b.shape, generator=g)).to(dtype) for n, b in base.items()} for _ in range(tasks)
    ]
    inputs = [
        {n: torch.randn(rows, k, generator=g) @ torch.randn(k, k, generator=g) + 1 for n, k in INPUTS.items()}
        for _ in range(tasks)
    ]
    return {n: b.to(dtype) for n, b in base.items()}, models, inputs


def _grams(inputs):
    return [{name: x.T @ x / len(x) for name, x in one.items()} for one in inputs]


def _truth(models, grams, name, a):
    """The paper's formula in float64, by an inverse."""
    shrunk = [a * g[name].double() + (1 - a) * g[name].double().diag().diag() for g in grams]
    weighted = sum(m[name].double().flatten(1) @ g for m, g in zip(models, shrunk, strict=True))
    return (weighted @ torch.linalg.inv(sum(shrunk))).reshape(SHAPES[name])


def test_minimises_the_distance_to_every_tasks_outputs():
    base, models, inputs = _case()
    merged = regmean(base, models, grams=_grams(inputs), off_diagonal=1.0)
    for name in INPUTS:
        x = torch.cat([one[name].double() for one in inputs])
        outputs = [one[name].double() @ m[name].double().flatten(1).T for one, m in zip(inputs, models, strict=True)]
        best = torch.linalg.lstsq(x, torch.cat(outputs)).solution.T.reshape(SHAPES[name])
        torch.testing.assert_close(merged[name], best.float(), rtol=0, atol=2e-5)
        assert (merged[name] - average(base, models)[name]).abs().max() > 0.01


@pytest.mark.parametrize("off_diagonal", [0.0, 0.1, 0.9, 1.0])
def test_equals_the_formula_and_averages_the_rest(off_diagonal):
    base, models, inputs = _case()
    grams = _grams(inputs)
    merged, mean = regmean(base, models, grams=grams, off_diagonal=off_diagonal), average(base, models)
    assert list(merged) == list(base) and torch.equal(merged["ln.bias"], mean["ln.bias"])
    for name in INPUTS:
        torch.testing.assert_close(
            merged[name], _truth(models, grams, name, off_diagonal).float(), rtol=3e-7, atol=1e-7
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    base, models, inputs = _case(dtype=dtype)
    merged = regmean(base, models, grams=_grams(inputs))
    for name in INPUTS:
        truth = _truth(models, _grams(inputs), name, 0.9)
        assert merged[name].dtype == dtype
        torch.testing.assert_close(merged[name].double(), truth, rtol=0.5001 * torch.finfo(dtype).eps, atol=1e-7)


def test_a_dead_input_leaves_the_average_in_its_column():
    base, models, inputs = _case()
    for one in inputs:
        one["mlp.c_fc.weight"][:, [4, 11]] = 0
    name, dead = "mlp.c_fc.weight", torch.tensor([4, 11])
    live = torch.tensor([i for i in range(30) if i not in (4, 11)])
    grams = _grams(inputs)
    for a in (0.5, 1.0):
        merged = regmean(base, models, grams=grams, off_diagonal=a)[name]
        mean = sum(m[name].double() for m in models) / 3
        torch.testing.assert_close(merged[:, dead], mean[:, dead].float(), rtol=1e-7, atol=0)
        shrunk = [a * g[name].double() + (1 - a) * g[name].double().diag().diag() for g in grams]
        rest = sum(m[name].double()[:, live] @ g[live][:, live] for m, g in zip(models, shrunk, strict=True))
        truth = rest @ torch.linalg.inv(sum(g[live][:, live] for g in shrunk))
        torch.testing.assert_close(merged[:, live], truth.float(), rtol=3e-7, atol=1e-7)


def test_an_input_that_one_task_never_has_follows_the_others():
    base, models, inputs = _case(tasks=2)
    inputs[0]["mlp.c_fc.weight"][:, 4] = 0
    merged = regmean(base, models, grams=_grams(inputs), off_diagonal=0.0)["mlp.c_fc.weight"]
    torch.testing.assert_close(merged[:, 4], models[1]["mlp.c_fc.weight"][:, 4], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 5])
def test_fewer_inputs_than_columns_are_solved(rows):
    base, models, inputs = _case(rows=rows)
    grams = _grams(inputs)
    name = "attn.in_proj_weight"
    merged = regmean(base, models, grams=grams)[name]
    torch.testing.assert_close(merged, _truth(models, grams, name, 0.9).float(), rtol=1e-6, atol=1e-6)
    shrunk = regmean(base, models, grams=grams, off_diagonal=1.0)[name]
    lowered = 1 - 2 * 30 * 2.0**-24
    torch.testing.assert_close(shrunk, _truth(models, grams, name, lowered).float(), rtol=0, atol=1e-3)
    outputs = [one[name] @ m[name].T for one, m in zip(inputs, models, strict=True)]
    for one, expected in zip(inputs, outputs, strict=True):  # 3 rows inputs, 30 columns: all outputs can be met
        torch.testing.assert_close(one[name] @ shrunk.T, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


def test_a_singular_sum_can_be_an_error_instead():
    base, models, inputs = _case(rows=5)
    with pytest.raises(CheckpointError, match=r"attn.in_proj_weight: the sum of grams is singular to float32.*than 30"):
        regmean(base, models, grams=_grams(inputs), off_diagonal=1.0, singular="error")
    regmean(base, models, grams=_grams(inputs), off_diagonal=0.99, singular="error")
    base, models, inputs = _case()
    regmean(base, models, grams=_grams(inputs), off_diagonal=1.0, singular="error")


def test_one_task_is_returned_and_equal_grams_average():
    base, models, inputs = _case()
    grams = _grams(inputs)
    alone = regmean(base, models[:1], grams=grams[:1])
    assert all(torch.equal(alone[name], models[0][name]) for name in base)
    same, mean = regmean(base, models, grams=[grams[0]] * 3), average(base, models)
    for name in base:
        torch.testing.assert_close(same[name], mean[name], rtol=2e-7, atol=1e-8)


def test_the_same_bytes_for_any_number_of_threads():
    g = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(500, 300, generator=g)}
    models = [{"w": base["w"] + 0.1 * torch.randn(500, 300, generator=g)} for _ in range(2)]
    grams = _grams([{"w": torch.randn(400, 300, generator=g)} for _ in range(2)])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(regmean(base, models, grams=grams))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same_bytes(found[1], found[0])
    assert_same_bytes(found[2], found[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g["conv1.weight"][0].fill_(torch.nan), r"conv1.weight: grams\[1\] must be finite"),
        (
            lambda g: g["conv1.weight"].neg_(),
            r"conv1.weight: grams\[1\] must be finite with a diag",
        ),
        (lambda g: g["conv1.weight"].triu_(), r"conv1.weight: grams\[1\] must be symmetric"),
        (lambda g: g.update({"mlp.c_fc.weight": torch.eye(7)}), r"c_fc.weight: shape in grams\[1\] must be \[30, 30\]"),
        (lambda g: g.update({"ln.bias": torch.ones(30)}), r"ln.bias: a tensor of shape \[30\] goes without grams"),
        (lambda g: g.pop("conv1.weight"), r"grams\[1\] lacks, unlike another task's, conv1.weight"),
        (lambda g: g.update({"head.weight": torch.eye(3)}), r"grams\[1\] has, unlike the models, head.weight"),
    ],
)
def test_a_matrix_that_is_no_gram_is_refused_by_name(change, message, tmp_path):
    base, models, inputs = _case()
    grams = _grams(inputs)
    change(grams[1])
    with pytest.raises(CheckpointError, match=message):
        regmean(base, models, grams=grams)
    paths, files = write_models([base, *models], tmp_path), write_statistics({"grams": grams}, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        ta.merge_files(paths[0], paths[1:], tmp_path / "o.safetensors", method="regmean", **files)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"grams": []}, r"grams must be a list of 3 \(one a task\), got 0; made by ta.gram_matrices"),
        ({"off_diagonal": 1.5}, r"off_diagonal must be in \[0, 1\], got 1.5"),
        ({"off_diagonal": -1}, r"off_diagonal must be in \[0, 1\], got -1"),
        ({"singular": "ridge"}, "singular must be one of shrink, error; got 'ridge'"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    base, models, inputs = _case()
    with pytest.raises(ArgumentError, match=message):
        regmean(base, models, **{"grams": _grams(inputs), **parameters})


def test_files_give_the_same_bytes_and_foretell_the_largest_system(tmp_path):
    base, models, inputs = _case()
    grams = _grams(inputs)
    paths, files = write_models([base, *models], tmp_path), write_statistics({"grams": grams}, tmp_path)
    out = tmp_path / "o.safetensors"
    report = ta.merge_files(paths[0], paths[1:], out, method="regmean", memory="1KB", **files)
    assert_same_bytes(dict(ta.load_state_dict(out)), regmean(base, models, grams=grams))
    assert len(report["grams"]) == 3 and report["parameters"] == {"off_diagonal": 0.9, "singular": "shrink"}
    plan = plan_merge(paths[0], paths[1:], tmp_path / "p.safetensors", method="regmean", memory="1KB", **files)
    largest = 4 * 4 * 90 * 30 + 3 * 4 * 30 * 30
    assert plan.large_bytes >= largest and any("no grams: ln.bias" in note for note in plan.notes)
