"""TIES on state dicts against its authors' words in float64, for all its rules."""

import itertools

import pytest
import torch

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging.ties import COUNT_RULES, ties
from taskarith_fast.ops.ties_merge import COMBINES, ELECTS
from tests.ops.ties_by_the_book import deltas, kept_by_rule, merged, parts

SHAPES = {"b.weight": (31, 33), "a.bias": (7,), "c": (), "empty": (0,), "conv": (4, 3, 2, 5)}


def _models(kind, tasks=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    if kind == "normal":
        draw = lambda s: torch.randn(s, generator=g).to(dtype)  # noqa: E731
    else:
        draw = lambda s: torch.randint(-2, 3, s, generator=g).to(dtype)  # noqa: E731
    states = [{n: draw(s) for n, s in SHAPES.items()} | {"step": torch.tensor(7)} for _ in range(tasks + 1)]
    return states[0], states[1:]


def _truth(base, models, density, scale, elect, combine, count_rule, zero_sign, scope):
    names = sorted(SHAPES)
    start = [base[n] for n in names]
    exact, magnitude = deltas(start, [[m[n] for n in names] for m in models])
    for t, m in enumerate(magnitude):
        for part in parts([b.shape for b in start], scope):
            exact[t, part] *= kept_by_rule(m[part], density, count_rule)
    flat = torch.from_numpy(scale * merged(exact, elect, combine, zero_sign))
    pieces = flat.split([b.numel() for b in start])
    return {n: b.double() + p.reshape(b.shape) for n, b, p in zip(names, start, pieces, strict=True)}


@pytest.mark.parametrize("kind", ["normal", "few values"])
@pytest.mark.parametrize("count_rule", COUNT_RULES)
@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_every_rule_equals_the_book(kind, count_rule, scope):
    base, models = _models(kind)
    for elect, combine, zero_sign in itertools.product(ELECTS, COMBINES, ("global_majority", "plus", "zero")):
        rules = dict(elect=elect, combine=combine, count_rule=count_rule, zero_sign=zero_sign, scope=scope)
        out = ties(base, models, density=0.3, scale=0.7, **rules)
        for name, truth in _truth(base, models, 0.3, 0.7, **rules).items():
            torch.testing.assert_close(out[name].double(), truth, rtol=1.2e-7, atol=1e-12, msg=f"{name} {rules}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    base, models = _models("normal", dtype=dtype)
    rules = dict(elect="mass", combine="mean", count_rule="exact", zero_sign="plus", scope="global")
    out, truth = ties(base, models, density=0.3, **rules), _truth(base, models, 0.3, 1.0, **rules)
    for name, t in truth.items():
        assert out[name].dtype == dtype
        torch.testing.assert_close(out[name].double(), t, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize(("count_rule", "kept"), [("exact", 200), ("official", 201), ("talos", 200)])
def test_published_counts_are_reproduced(count_rule, kept):
    """K = 20 % of 1000 keeps 201 entries in the published code."""
    task = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    out = ties({"w": torch.zeros(1000)}, [task], density=0.2, count_rule=count_rule)
    assert int((out["w"] != 0).sum()) == kept


def test_ties_at_the_border_follow_the_rule():
    task, base = {"w": torch.ones(10), "a": torch.ones(10)}, {"w": torch.zeros(10), "a": torch.zeros(10)}
    counts = {}
    for rule in COUNT_RULES:
        out = ties(base, [task], density=0.2, count_rule=rule)
        counts[rule] = (int(out["a"].sum()), int(out["w"].sum()))
    assert counts == {"exact": (4, 0), "official": (10, 10), "talos": (0, 0)}


@pytest.mark.parametrize("count_rule", COUNT_RULES)
@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_density_one_keeps_everything(count_rule, scope):
    base, models = _models("normal", tasks=1)
    out = ties(base, models, density=1.0, count_rule=count_rule, scope=scope)
    assert list(out) == list(base)
    for name in base:
        assert torch.equal(out[name], models[0][name]), name


def test_inputs_are_left_alone_and_results_are_new():
    base, models = _models("normal")
    copies = {n: t.clone() for n, t in base.items()}
    out = ties(base, models)
    out["step"].fill_(0)
    assert all(torch.equal(base[n], copies[n]) for n in base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"density": float("nan")}, "density must be in"),
        ({"scale": float("inf")}, "scale must be finite, got inf"),
        ({"elect": "vote"}, "elect must be one of mass, count, normfrac, normmass; got 'vote'"),
        ({"combine": "median"}, "combine must be one of"),
        ({"count_rule": "peft"}, "count_rule must be one of exact, official, talos; got 'peft'"),
        ({"zero_sign": "minus"}, "zero_sign must be one of"),
        ({"scope": "layer"}, "scope must be one of"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    base, models = _models("normal")
    with pytest.raises(ArgumentError, match=message):
        ties(base, models, **arguments)


def test_models_that_do_not_fit_are_refused():
    base, models = _models("normal")
    with pytest.raises(ArgumentError, match="at least one model"):
        ties(base, [])
    models[1]["a.bias"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"a\.bias: every value must be finite"):
        ties(base, models)
