"""From the artefacts of a study to its results document: rows, curves, cosine maps, times."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.analysis import results as schema
from taskarith_fast.loops import statistics
from taskarith_fast.loops.demo_config import ENCODERS, RECIPES, DemoConfig, as_json
from taskarith_fast.loops.demo_plan import Plan
from taskarith_fast.loops.machine import machine_facts, versions
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.stages import Artefact

LABELS = {
    "individual": "Individually fine-tuned",
    "random_head": "Fine-tuned from a random head",
    "joint": "Joint training",
    "average": "Average",
    "task_arithmetic": "Task arithmetic",
    "post_hoc": "Task arithmetic, linearized post hoc",
    "ties": "TIES",
    "consensus": "Consensus",
    "dare": "DARE",
    "breadcrumbs": "Breadcrumbs",
    "fisher": "Fisher",
    "regmean": "RegMean",
    "cart": "CART",
    "adamerging_task_wise": "AdaMerging, task-wise",
    "adamerging": "AdaMerging",
    "adamerging_plus_plus": "AdaMerging++",
    "cart_plus_plus": "CART++",
}
"""Rows of one recipe, in the order of the table."""

_EXAMPLES = 3
_SINGLE = ("probe", "individual", "random_head", "joint")

Place = tuple[str, str]
"""Recipe and method of a model."""
Answers = dict[Place, statistics.Correct]
Seeds = Sequence[Mapping[str, Artefact]]
"""The artefacts of one recipe, one mapping a seed: what each stage is -> its artefact."""


def collect(
    config: DemoConfig, plan: Plan, artefacts: Mapping[str, Artefact], reused: set[str],
    encoder: nn.Module, tasks: Mapping[str, data.Task],
) -> schema.Results:  # fmt: skip
    """Make the results document.

    Args:
        config: What was done.
        plan: The stages of the study.
        artefacts: Stage key -> what it left.
        reused: Keys of the stages that this run found finished.
        encoder: The pre-trained encoder.
        tasks: The tasks as they were used.
    """
    base, branches = artefacts[plan.base.key], _by_recipe(plan, artefacts)
    names = list(tasks)
    probes = {name: artefacts[plan.base.inputs[f"probe/{name}"].key] for name in names}
    label = {"zero_shot": "Zero-shot", "random": "Random heads"}.get(config.heads, "Linear probe")
    rows = [_probe_row(label, base, probes, branches[next(iter(branches))])]
    for recipe, seeds in branches.items():
        rows += _rows(recipe, seeds, base, names)
    return schema.Results(
        schema_version=schema.SCHEMA_VERSION,
        preset=config.preset,
        config=as_json(config),
        recipes={recipe: RECIPES[recipe][0] if recipe in RECIPES else recipe for recipe in config.recipes},
        seeds=list(config.seeds),
        encoder=_encoder_facts(config, encoder),
        versions=versions(),
        machine=machine_facts(device_of(encoder).type),
        samples="texts" if config.texts else "images",
        examples=_examples(tasks) if config.texts else [],
        tasks=[_task_facts(task) for task in tasks.values()],
        rows=rows,
        curves=schema.Curves(
            scale=[
                _scale_curve(recipe, method, seeds, names)
                for recipe, seeds in branches.items()
                for method in ("task_arithmetic", "post_hoc", "ties")
                if method in seeds[0]
            ],
            cart_rank=[_rank_curve(recipe, seeds, names) for recipe, seeds in branches.items() if "cart" in seeds[0]],
        ),
        cosine=[_cosine(recipe, seeds, names) for recipe, seeds in branches.items()],
        costs=[_cost(recipe, seeds, names) for recipe, seeds in branches.items()],
        negation=[
            _negation(recipe, name, seeds)
            for recipe, seeds in branches.items()
            for name in names
            if f"negate/{name}" in seeds[0]
        ],
        linearity=[
            _linearity(recipe, name, seeds)
            for recipe, seeds in branches.items()
            for name in names
            if "post_hoc_own" in seeds[0]
        ],
        sensitivity=[_sensitivity(recipe, seeds) for recipe, seeds in branches.items() if "sensitivity" in seeds[0]],
        timing=[
            schema.StageTime(
                group=stage.group,
                stage=stage.name,
                seconds=artefacts[stage.key].seconds,
                peak_rss_mb=artefacts[stage.key].peak_rss_mb,
                peak_gpu_mb=artefacts[stage.key].peak_gpu_mb,
                reused=stage.key in reused,
            )
            for stage in plan.stages
        ],
    )


def _probe_row(label: str, base: Artefact, probes: Mapping[str, Artefact], seeds: Seeds) -> schema.Row:
    """The row that no recipe changes; it is normalised by the first recipe's encoders."""
    names = list(probes)
    chosen = {
        f"{parameter} for {name}": probe.facts[key]
        for name, probe in probes.items()
        for key, parameter in (("c", "C"), ("lr", "learning rate"))
        if probe.facts[key] is not None
    }
    probe = [_correct(base, "test", names)]
    reference = [_correct(artefacts["individual"], "test", names) for artefacts in seeds]
    return _row("", "probe", label, [chosen], probe, reference, probe)


def right_answers(
    plan: Plan, artefacts: Mapping[str, Artefact], names: Sequence[str]
) -> dict[Place, statistics.Correct]:
    """Which test images each model has right, averaged over the seeds, by recipe and method; the probe's recipe is "".

    Beside the rows' models there are, as "negate", those that were made to forget a task, on that task, and as
    "post_hoc_own" single tasks linearized post hoc.
    """
    right: Answers = {("", "probe"): statistics.mean_over_seeds([_correct(artefacts[plan.base.key], "test", names)])}
    for recipe, seeds in _by_recipe(plan, artefacts).items():
        for method in (*LABELS, "post_hoc_own", "negate"):
            if correct := _of_method(method, seeds, names):
                right[recipe, method] = statistics.mean_over_seeds(correct)
    return right


def _by_recipe(plan: Plan, artefacts: Mapping[str, Artefact]) -> dict[str, list[dict[str, Artefact]]]:
    found: dict[str, list[dict[str, Artefact]]] = {}
    for branch in plan.branches:
        seeds = found.setdefault(branch.recipe, [])
        seeds.append({name: artefacts[stage.key] for name, stage in branch.stages.items()})
    return found


def _rows(recipe: str, seeds: Seeds, base: Artefact, names: Sequence[str]) -> list[schema.Row]:
    probe = [_correct(base, "test", names)]
    reference = [_correct(artefacts["individual"], "test", names) for artefacts in seeds]
    rows = []
    for method, label in LABELS.items():
        if correct := _of_method(method, seeds, names):
            chosen = [a[method].facts.get("chosen", {}) if method in a else {} for a in seeds]
            rows.append(_row(recipe, method, label, chosen, correct, reference, probe))
    return rows


def _of_method(method: str, seeds: Seeds, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Test answers of a method, one entry a seed; none if the study does not have it."""
    if method in seeds[0]:
        return [_correct(a[method], "test", names, _chosen_point(a[method])) for a in seeds]
    if f"{method}/{names[0]}" not in seeds[0]:
        return []
    after = 1 if method == "negate" else 0
    return [{n: _correct(a[f"{method}/{n}"], "test", [n], after)[n] for n in names} for a in seeds]


def _row(
    recipe: str, method: str, label: str, chosen: Sequence[Mapping[str, float]],
    correct: Sequence[statistics.Correct], reference: Sequence[statistics.Correct],
    probe: Sequence[statistics.Correct],
) -> schema.Row:  # fmt: skip
    ours, theirs = statistics.mean_over_seeds(correct), statistics.mean_over_seeds(reference)
    accuracy, normalized = statistics.accuracies(ours), statistics.ratios(ours, theirs)
    gains = statistics.differences(ours, statistics.mean_over_seeds(probe))
    means = [statistics.mean_of(statistics.accuracies(statistics.mean_over_seeds([run]))).value for run in correct]
    return schema.Row(
        recipe=recipe,
        method=method,
        label=label,
        merged=method not in _SINGLE,
        hyperparameters=[{k: float(v) for k, v in choice.items()} for choice in chosen],
        accuracy=accuracy,
        mean=statistics.mean_of(accuracy),
        normalized=normalized,
        normalized_mean=statistics.mean_of(normalized),
        over_probe=statistics.mean_of(gains),
        seed_std=numbers.stdev(means) if len(means) > 1 else None,
    )


def _scale_curve(recipe: str, method: str, seeds: Seeds, names: Sequence[str]) -> schema.ScaleCurve:
    points = seeds[0][method].facts["points"]
    measured = [_validation(seeds, method, names, place) for place in range(len(points))]
    return schema.ScaleCurve(
        recipe=recipe,
        method=method,
        label=LABELS[method],
        scale=[point["scale"] for point in points],
        val_mean=[mean for mean, _ in measured],
        val_normalized=[normalized.value for _, normalized in measured],
        val_stderr=[normalized.stderr for _, normalized in measured],
        chosen=[artefacts[method].facts["chosen"]["scale"] for artefacts in seeds],
    )


def _rank_curve(recipe: str, seeds: Seeds, names: Sequence[str]) -> schema.RankCurve:
    """The grid, with the plain average as full rank: there CART adds deltas that sum to zero."""
    points = seeds[0]["cart"].facts["points"]
    ratios = sorted({point["rank_ratio"] for point in points})
    scales = sorted({point["scale"] for point in points})
    average = _validation(seeds, "average", names, 0)
    grid = [
        [_validation(seeds, "cart", names, r * len(scales) + s) for s in range(len(scales))] for r in range(len(ratios))
    ]
    grid.append([average] * len(scales))
    tests = [_test(seeds, "cart", names, place) for place in range(len(ratios))] + [_test(seeds, "average", names, 0)]
    chosen = [artefacts["cart"].facts["chosen"] for artefacts in seeds]
    return schema.RankCurve(
        recipe=recipe,
        rank_ratio=[*ratios, 1.0],
        scale=scales,
        val_mean=[[mean for mean, _ in line] for line in grid],
        val_normalized=[[normalized.value for _, normalized in line] for line in grid],
        chosen_rank_ratio=[choice["rank_ratio"] for choice in chosen],
        chosen_scale=[choice["scale"] for choice in chosen],
        test_mean=[test.value for test in tests],
        test_stderr=[test.stderr for test in tests],
    )


def _validation(seeds: Seeds, method: str, names: Sequence[str], place: int) -> tuple[float, schema.Measured]:
    """Mean and mean normalised validation accuracy of one point of a search."""
    ours = statistics.mean_over_seeds(_correct(a[method], "val", names, place) for a in seeds)
    reference = statistics.mean_over_seeds(_correct(a["individual"], "val", names) for a in seeds)
    normalized = statistics.mean_of(statistics.ratios(ours, reference))
    return statistics.mean_of(statistics.accuracies(ours)).value, normalized


def _test(seeds: Seeds, method: str, names: Sequence[str], place: int) -> schema.Measured:
    ours = statistics.mean_over_seeds(_correct(a[method], "test", names, place) for a in seeds)
    return statistics.mean_of(statistics.accuracies(ours))


def _cosine(recipe: str, seeds: Seeds, names: Sequence[str]) -> schema.CosineMap:
    matrices = [artefacts["cosine"].tensors["cosine"] for artefacts in seeds]
    return schema.CosineMap(recipe=recipe, names=list(names), matrix=torch.stack(matrices).mean(dim=0).tolist())


def _cost(recipe: str, seeds: Seeds, names: Sequence[str]) -> schema.Cost:
    runs = [artefacts[f"finetune/{name}"] for artefacts in seeds for name in names]
    times = [run.facts["step_seconds"] for run in runs]
    return schema.Cost(
        recipe=recipe,
        trained=int(numbers.median(run.facts["trained"] for run in runs)),
        forward_backward=numbers.median(time["forward_backward"] for time in times),
        step=numbers.median(time["step"] for time in times),
        peak_rss_mb=max(run.peak_rss_mb for run in runs),
        vector_bytes=numbers.median(run.facts["vector_bytes"] for run in runs),
    )


def _negation(recipe: str, target: str, seeds: Seeds) -> schema.Negation:
    runs = [artefacts[f"negate/{target}"] for artefacts in seeds]
    control = runs[0].facts["control"]

    def measured(task: str, place: int) -> schema.Measured:
        correct = statistics.mean_over_seeds(_correct(run, "test", [task], place) for run in runs)
        return statistics.accuracies(correct)[task]

    return schema.Negation(
        recipe=recipe,
        target=target,
        control=control,
        scale=[run.facts["chosen"]["scale"] for run in runs],
        target_before=measured(target, 0),
        target_after=measured(target, 1),
        control_before=measured(control, 0),
        control_after=measured(control, 1),
    )


def _linearity(recipe: str, task: str, seeds: Seeds) -> schema.Linearity:
    ordinary, linearized = (
        statistics.mean_over_seeds(_correct(a[stage], "test", [task]) for a in seeds)
        for stage in ("individual", "post_hoc_own")
    )
    return schema.Linearity(
        recipe=recipe,
        task=task,
        ordinary=statistics.accuracies(ordinary)[task],
        linearized=statistics.accuracies(linearized)[task],
        difference=statistics.differences(linearized, ordinary)[task],
    )


def _sensitivity(recipe: str, seeds: Seeds) -> schema.SensitivityCurve:
    facts = [artefacts["sensitivity"].facts for artefacts in seeds]
    changes = zip(*(f["change"] for f in facts), strict=True)
    return schema.SensitivityCurve(
        recipe=recipe, task=facts[0]["task"], step=facts[0]["step"], change=[numbers.mean(c) for c in changes]
    )


def _chosen_point(artefact: Artefact) -> int:
    """Which of the models evaluated on test images was chosen: only CART has more than one, its ranks."""
    chosen = artefact.facts.get("chosen", {})
    if "rank_ratio" not in chosen:
        return 0
    return sorted({point["rank_ratio"] for point in artefact.facts["points"]}).index(chosen["rank_ratio"])


def _correct(artefact: Artefact, split: str, names: Sequence[str], place: int = 0) -> dict[str, Tensor]:
    return {name: artefact.tensors[f"{split}/{name}"][place] for name in names}


def _encoder_facts(config: DemoConfig, encoder: nn.Module) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    facts = {
        "encoder": ENCODERS.get(config.encoder, config.encoder),
        "blocks used": "all" if config.depth is None else f"the first {config.depth}",
        "parameters": f"{parameters / 1e6:.1f} million",
    }
    return facts if config.texts else facts | {"images": f"{encoder.image_size} x {encoder.image_size} pixels"}


def _examples(tasks: Mapping[str, data.Task]) -> list[schema.ExampleText]:
    """A few training texts of each task."""
    found = []
    for name, task in tasks.items():
        split = task.splits["train"]
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:_EXAMPLES]
        for example, label in zip(*split.get(order), strict=True):
            found.append(schema.ExampleText(task=name, text=example.text, label=task.classes[int(label)]))
    return found


def _task_facts(task: data.Task) -> schema.TaskFacts:
    sizes = {split: len(task.splits[split]) for split in ("train", "val", "test")}
    return schema.TaskFacts(
        name=task.name, classes=len(task.classes), licence=task.licence, source=task.source, **sizes
    )
