"""Where protocols run: studies and analyses as stages of one folder, so that all entries share their models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from taskarith_fast.analysis.figures_of_kinds import figures
from taskarith_fast.analysis.figures_theme import THEMES, Themed
from taskarith_fast.analysis.outcome import Outcome
from taskarith_fast.loops.analyze import analyze
from taskarith_fast.loops.analyze_inputs import Inputs
from taskarith_fast.loops.demo import run_stages
from taskarith_fast.loops.demo_plan import Branch, Plan, make_plan
from taskarith_fast.loops.demo_stages import Workshop, train_encoder
from taskarith_fast.loops.reproduce.published import Published
from taskarith_fast.loops.reproduce.setting import Setting
from taskarith_fast.loops.reproduce.study import Study
from taskarith_fast.loops.results import collect, right_answers
from taskarith_fast.loops.stages import Artefact, Made, Stage, Store

Arrays = dict[str, np.ndarray]
Protocol = Callable[["Bench", Published], Outcome]
"""How an entry is run, beside what the paper printed."""


@dataclass
class Bench:
    """Runs what protocols ask for, and keeps count of what it cost."""

    setting: Setting
    store: Store
    cost: dict[str, Artefact] = field(default_factory=dict)
    """Every stage that was needed, by name."""

    def __post_init__(self) -> None:
        self.shop = Workshop(self.setting.encoder, self.setting.tasks)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.setting.tasks)

    @property
    def quick(self) -> bool:
        """Whether grids are to be coarse."""
        return self.setting.config.preset == "quick"

    def lambda_curve(self, recipe: str, **changes: Any) -> Arrays:
        """Accuracy along the scales that task arithmetic may have."""
        scales = list(self.setting.config.task_arithmetic_scales)
        return self.analyze("lambda_curve", recipe, scales=scales, changes=changes)

    def study(self, *recipes: str, **changes: Any) -> Study:
        """Probe, fine-tune by each recipe, merge, evaluate; `changes` are fields of `DemoConfig`."""
        config, plan = self._plan(recipes, changes)
        artefacts, reused = self._run(plan, plan.stages)
        results = collect(config, plan, artefacts, reused, self.setting.encoder, self.setting.tasks)
        return Study(results, right_answers(plan, artefacts, self.tasks))

    def analyze(
        self, kind: str, recipe: str, *, tasks: Sequence[str] = (), masks: bool = False, split: str = "test",
        changes: Mapping[str, Any] = {}, **parameters: Any,
    ) -> Arrays:  # fmt: skip
        """An analysis of the fine-tuned models of one recipe and the first seed, or of its masks."""
        needed = ("full", recipe) if recipe == "lota" else (recipe,)
        _, plan = self._plan(needed, dict(changes))
        branch = next(b for b in plan.branches if b.recipe == recipe)
        names, linearized = list(tasks) or self.tasks, recipe.startswith("linearized")
        words: dict[str, Any] = {"kind": kind, "tasks": names, "split": split, "linearized": linearized, **parameters}
        inputs = {f"probe/{n}": branch.stages[f"probe/{n}"] for n in names} | _sources(branch, names, masks)
        run = partial(_analysis, words=words)
        stage = Stage("Analyses", f"analyze-{kind}-{recipe}", run, words, inputs, cost=1000.0)
        artefacts, _ = self._run(plan, [stage])
        found = artefacts[stage.key]
        arrays = {name: np.array(value, dtype=str) for name, value in found.facts["names"].items()}
        return arrays | {name: found.tensors[name].numpy() for name in found.tensors}

    def step_seconds(self, *recipes: str, rounds: int = 3, steps: int = 5) -> dict[str, list[dict[str, float]]]:
        """Seconds of an optimizer step's parts, `rounds` times by recipe, measured now and in turn.

        What finished stages say was measured when they were made, on a machine as busy as it was then.
        """
        _, plan = self._plan(recipes, {})
        task = self.tasks[0]
        stages: dict[str, Stage[Workshop]] = {}
        for branch in plan.branches:
            stages.setdefault(branch.recipe, branch.stages[f"finetune/{task}"])
        artefacts, _ = self._run(plan, [source for stage in stages.values() for source in stage.inputs.values()])
        found: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in recipes}
        for _ in range(rounds):
            for recipe, stage in stages.items():
                config = dataclasses.replace(self._recipe(recipe), steps=steps, epochs=None, warmup=0)
                inputs = {name: artefacts[source.key] for name, source in stage.inputs.items()}
                found[recipe].append(train_encoder(self.shop, inputs, task=task, config=config)[0]["step_seconds"])
        return found

    def steps(self, recipe: str) -> int:
        """Optimizer steps of all fine-tuning by a recipe in the stages that were needed."""
        made = (artefact.facts for name, artefact in self.cost.items() if f"finetune-{recipe}-" in name)
        return sum(int(facts["steps"]) for facts in made)

    def _plan(self, recipes: Sequence[str], changes: Mapping[str, Any]) -> tuple[Any, Plan]:
        chosen = {key: self._recipe(key) for key in recipes}
        config = dataclasses.replace(self.setting.config, recipes=chosen, **changes)
        return config, make_plan(config, self.setting.encoder, self.setting.tasks)

    def _recipe(self, key: str) -> Any:
        return dataclasses.replace(self.setting.recipe(key), device=self.setting.config.probe.device)

    def _run(self, plan: Plan, wanted: Iterable[Stage[Workshop]]) -> tuple[dict[str, Artefact], set[str]]:
        """Run some stages and those that they read."""
        stages = list(_with_sources(wanted).values())
        artefacts, reused = run_stages(dataclasses.replace(plan, stages=stages), self.store, self.shop)
        self.cost |= {f"{stage.group}/{stage.name}-{stage.key}": artefacts[stage.key] for stage in stages}
        return artefacts, reused


def drawn(kind: str, arrays: Arrays) -> Themed:
    """An analysis's first figure, for light pages and for dark ones."""
    light, dark = (next(iter(figures(kind, arrays, theme=theme).values())) for theme in THEMES)
    return light, dark


def _sources(branch: Branch, names: Sequence[str], masks: bool) -> dict[str, Stage[Workshop]]:
    tuned = {f"finetune/{name}": branch.stages[f"finetune/{name}"] for name in names}
    if not masks:
        return tuned
    return {f"masks/{name}": tuned[f"finetune/{name}"].inputs["masks"] for name in names}


def _with_sources(wanted: Iterable[Stage[Workshop]]) -> dict[str, Stage[Workshop]]:
    """Stages by key, inputs first."""
    found: dict[str, Stage[Workshop]] = {}
    for stage in wanted:
        found |= {key: s for key, s in _with_sources(stage.inputs.values()).items() if key not in found}
        found[stage.key] = stage
    return found


def _analysis(shop: Workshop, inputs: dict[str, Artefact], *, words: Mapping[str, Any]) -> Made:
    """One analysis; arrays of names are facts, the others tensors."""
    parameters = dict(words)
    kind, names, split, linearized = (parameters.pop(key) for key in ("kind", "tasks", "split", "linearized"))
    needs_tasks = kind not in ("cosine", "mask_share", "mask_iou")
    tuned = f"finetune/{names[0]}" in inputs
    found = analyze(
        kind,
        Inputs(
            encoder=shop.encoder,
            base=shop.base if tuned or needs_tasks else None,
            vectors=[shop.finetuned(inputs, name) for name in names] if tuned else [],
            labels=names if tuned else [],
            masks={} if tuned else {name: shop.masks(inputs[f"masks/{name}"].tensors) for name in names},
            tasks={name: shop.tasks[name] for name in names} if needs_tasks else {},
            heads={n: shop.head(inputs[f"probe/{n}"].tensors) for n in names} if needs_tasks else {},
            split=split,
            samples=parameters.pop("samples", None),
            linearized=linearized and kind != "cosine",
            progress=shop.progress,
        ),
        **parameters,
    )
    texts = {name: value.tolist() for name, value in found.items() if value.dtype.kind in "US"}
    rest = {name: torch.from_numpy(np.array(value)) for name, value in found.items() if name not in texts}
    return {"names": texts}, rest
