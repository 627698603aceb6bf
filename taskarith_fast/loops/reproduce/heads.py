"""Which head a task's encoder is fine-tuned with, as Hazimeh et al. 2024 compare: kept, or trained along."""

from __future__ import annotations

from collections.abc import Sequence

from taskarith_fast.analysis.figures_lines import compared_figure
from taskarith_fast.analysis.figures_theme import in_both
from taskarith_fast.analysis.outcome import Check, Outcome, Table, number, percent
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.published import Published
from taskarith_fast.loops.reproduce.study import Study, in_points

_KEPT, _FROM_RANDOM = "head probed first and kept", "random head trained along"
_RANDOM = {"heads": "random"}


def from_random_heads(bench: Bench, published: Published) -> Outcome:
    """Full fine-tuning: encoder and random head of each task trained together, beside the head that is probed first."""
    kept, drawn = bench.study("full"), bench.study("random_head", **_RANDOM)
    lines = [[_KEPT, *_numbers(kept, "full")], [_FROM_RANDOM, *_numbers(drawn, "random_head")]]
    columns = ["fine-tuned", "single-task", "addition", "addition, normalised", "scale"]
    note = "Each task is judged with its own head. The paper's values are not in the text that we have, but for CLIP's."
    return Outcome([Table("Accuracy (%)", columns, lines, note)], _kept_above(kept, drawn))


def full_fine_tuning(bench: Bench, published: Published) -> Outcome:
    """The same along the scale of the sum of task vectors."""
    found = {
        _KEPT: bench.lambda_curve("full"),
        _FROM_RANDOM: bench.lambda_curve("random_head", **_RANDOM),
    }
    scales = found[_KEPT]["scales"]
    lines = [[f"{s:g}", *(f"{100 * arrays['normalized'][i]:.1f}" for arrays in found.values())]
             for i, s in enumerate(scales)]  # fmt: skip
    curves = {name: (arrays["scales"], arrays["normalized"]) for name, arrays in found.items()}
    figure = in_both(lambda: compared_figure(curves, "scale"))
    table = Table("Normalised test accuracy (%), mean over tasks", ["lambda", *found], lines)
    checks = _kept_above(bench.study("full"), bench.study("random_head", **_RANDOM))
    return Outcome([table], checks, {"Normalised accuracy along lambda": figure})


def head_too(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """The pre-trained head kept, or trained along with the encoder; `recipes` are the counterparts of the rows."""
    study = bench.study(*(recipe for recipe in recipes if recipe))
    lines = []
    for theirs, recipe in zip(published.rows, recipes, strict=True):
        ours = _numbers(study, recipe) if recipe else ["", percent(study.need(("", "probe")).mean), "", ""]
        lines.append([str(theirs[0]), *ours, *map(number, theirs[1:])])
    names = ["single", "abs", "norm", "lambda"]
    columns = [published.columns[0], *(f"here, {n}" for n in names), *(f"paper, {n}" for n in names)]
    note = "Here without the papers' data the head that is kept is a linear probe, which no text tower wrote."
    place, other = ((recipe, "task_arithmetic") for recipe in recipes if recipe)
    checks = [in_points(f"with the head kept, task addition is higher {words}", study.above(place, other, measure))
              for words, measure in (("in accuracy", "abs"), ("in normalised accuracy", "norm"))]  # fmt: skip
    return Outcome([Table("Accuracy (%)", columns, lines, "" if bench.setting.papers else note)], checks)


def _kept_above(kept: Study, drawn: Study) -> list[Check]:
    one, other = ("full", "task_arithmetic"), ("random_head", "task_arithmetic")
    return [in_points(f"task addition is higher with the {_KEPT} than with a {_FROM_RANDOM}, {words}",
                      kept.above(one, other, measure, drawn))
            for words, measure in (("in accuracy", "abs"), ("in normalised accuracy", "norm"))]  # fmt: skip


def _numbers(study: Study, recipe: str) -> list[str]:
    """Single-task accuracy, and task addition: accuracy, normalised accuracy, the scale that validation chose."""
    single, added = (study.need((recipe, method)) for method in ("individual", "task_arithmetic"))
    scale = ", ".join(f"{choice['scale']:g}" for choice in added.hyperparameters)
    return [percent(single.mean), percent(added.mean), percent(added.normalized_mean), scale]
