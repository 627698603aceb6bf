"""The demo as a list of stages, in an order in which every stage comes after those it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from taskarith_fast import __version__, data
from taskarith_fast.data.fingerprint import fingerprint
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops import demo_stages as compute
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.demo_config import DemoConfig, settings_of
from taskarith_fast.loops.demo_more_merges import more_merges
from taskarith_fast.loops.demo_plan_linearized import linearized_stages, post_hoc_stages, sensitivity_stage
from taskarith_fast.loops.merge import scale_grid
from taskarith_fast.loops.recipes import RECIPES as FINETUNE_RECIPES
from taskarith_fast.loops.recipes import within
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.stages import Stage
from taskarith_fast.models.packages import digest

StageMap = dict[str, Stage[compute.Workshop]]

# An image that trains costs about this many that are only evaluated: forward, backward, optimizer.
_TRAINING_COST = 3.5
# Five products a layer instead of three.
_LINEARIZED_COST = 1.75


@dataclasses.dataclass(frozen=True)
class Branch:
    """The stages of one recipe and seed, by what they are."""

    recipe: str
    seed: int
    stages: StageMap


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of the whole study."""

    base: Stage[compute.Workshop]
    """The linear probes evaluated."""
    branches: list[Branch]
    stages: list[Stage[compute.Workshop]]
    """All of them, once each, inputs first."""


def make_plan(config: DemoConfig, encoder: nn.Module, tasks: Mapping[str, data.Task]) -> Plan:
    """Plan the study; nothing is computed but the hashes of data and weights."""
    planner = Planner(config, encoder, tasks)
    probes = {f"probe/{name}": planner.probe(name) for name in tasks}
    base = planner.evaluation("evaluate-probes", compute.evaluate_base, probes, points=1)
    branches = []
    for seed in config.seeds:
        done: dict[str, StageMap] = {}
        for recipe, finetune in config.recipes.items():
            done[recipe] = planner.branch(recipe, dataclasses.replace(finetune, seed=seed), probes, done)
            branches.append(Branch(recipe, seed, done[recipe]))
    return Plan(base, branches, list({stage.key: stage for stage in planner.planned}.values()))


class Planner:
    """Makes stages and remembers them in order."""

    def __init__(self, config: DemoConfig, encoder: nn.Module, tasks: Mapping[str, data.Task]) -> None:
        self.config, self.tasks = config, tasks
        self.planned: list[Stage[compute.Workshop]] = []
        self._common = {
            "version": __version__,
            "device": device_of(encoder).type,
            "encoder": digest({name: tensor.cpu() for name, tensor in encoder.state_dict().items()}),
            "architecture": repr(getattr(encoder, "config", type(encoder).__name__)),
            "image_size": getattr(encoder, "image_size", None),
        }
        self.data = {name: fingerprint(task) for name, task in tasks.items()}
        self.images = {s: sum(len(task.splits[s]) for task in tasks.values()) for s in ("train", "val", "test")}

    def probe(self, task: str) -> Stage[compute.Workshop]:
        config = self.config.probe
        if self.config.heads == "zero_shot":
            words: dict[str, Any] = {"task": task, "encoder": self.config.encoder}
            write = partial(compute.write_head, **words)
            return self.add("Zero-shot heads", f"zero-shot-{task}", write, words | {"data": self.data[task]}, {}, 1)
        if self.config.heads == "random":
            words = {"task": task, "seed": config.seed}
            draw = partial(compute.draw_head, **words)
            return self.add("Random heads", f"random-{task}", draw, words | {"data": self.data[task]}, {}, 1)
        splits = self.tasks[task].splits
        run = partial(compute.train_probe, task=task, config=config)
        settings = {"probe": settings_of(config), "task": self.data[task]}
        return self.add("Linear probes", f"probe-{task}", run, settings, {}, len(splits["train"]) + len(splits["val"]))

    def branch(
        self,
        recipe: str,
        config: FinetuneConfig,
        probes: StageMap,
        done: Mapping[str, StageMap],
    ) -> StageMap:
        """Fine-tune every task, compare, merge, and negate; `done` holds the same seed's branches before this one."""
        label = f"{recipe}-seed{config.seed}"
        kind = FINETUNE_RECIPES[config.recipe]
        masked = kind.kind == "masks"
        masks = {name: self._masks(label, name, config, probes, done) for name in self.tasks if masked}
        tuned = {f"finetune/{n}": self._finetune(label, n, config, probes, masks.get(n)) for n in self.tasks}
        if config.train_head:
            probes = {f"probe/{n}": self._trained_head(label, n, tuned[f"finetune/{n}"]) for n in self.tasks}
        models = probes | tuned
        cosine = self.add(
            "Cosine map", f"cosine-{label}", compute.compare_task_vectors, {"tasks": list(self.tasks)}, tuned, 100
        )
        stages = models | {"cosine": cosine}
        if kind.linearized:
            return stages | linearized_stages(self, label, models)
        stages["individual"] = self.evaluation(
            f"evaluate-individual-{label}", compute.evaluate_individual, models, points=1
        )
        stages["average"] = self.evaluation(f"merge-average-{label}", compute.merge_average, models, points=1)
        read = models | {"individual": stages["individual"]}
        stages |= self._merges(label, read, masked)
        stages |= more_merges(self, label, self.config.more_merges.get(recipe, ()), read, masked)
        if self.config.negation_scales:
            scales = self.config.sparse_negation_scales if masked else self.config.negation_scales
            stages |= {f"negate/{name}": self._negate(label, name, models, scales) for name in self.tasks}
        if self.config.post_hoc:
            stages |= post_hoc_stages(self, label, models, stages["individual"], merged=config.recipe == "full")
        if recipe in self.config.sensitivity:
            stages["sensitivity"] = sensitivity_stage(self, label, config, probes, masks)
        if self.config.extra_rows and config.recipe == "full":
            stages["joint"] = self._joint(label, config, probes)
            stages |= {f"random_head/{name}": self._random_head(label, name, config) for name in self.tasks}
        return stages

    def _merges(self, label: str, models: StageMap, masked: bool) -> StageMap:
        """Searches by method. Sparse task vectors are added only, at scales up to 1 / density: trimming them again is
        no part of their method."""
        study = self.config
        if masked:
            scales = scale_grid(study.mask_density)
            return {"task_arithmetic": self.search("task_arithmetic", label, models, {"scale": scales}, {})}
        fixed = {"density": study.ties_density}
        return {
            "task_arithmetic": self.search(
                "task_arithmetic", label, models, {"scale": study.task_arithmetic_scales}, {}
            ),
            "ties": self.search("ties", label, models, {"scale": study.ties_scales}, fixed),
            "cart": self._cart(label, models),
        }

    def evaluation(
        self, name: str, run: Callable[..., Any], inputs: StageMap, *, points: int
    ) -> Stage[compute.Workshop]:
        cost = points * (self.images["val"] + self.images["test"])
        return self.add("Evaluation", name, run, {"data": self.data}, inputs, cost)

    def _masks(
        self, label: str, task: str, config: FinetuneConfig, probes: StageMap,
        done: Mapping[str, StageMap],
    ) -> Stage[compute.Workshop]:  # fmt: skip
        """Which weights a sparse recipe trains; LoTA takes those that full fine-tuning changed most."""
        study = self.config
        inputs = {f"probe/{task}": probes[f"probe/{task}"]}
        cost = _TRAINING_COST * study.mask_rounds * len(self.tasks[task].splits["val"])
        method = within(config.recipe)
        if method == "lota":
            if "full" not in done:
                raise ArgumentError("recipes must hold 'full' before 'lota', whose masks are made from it")
            inputs[f"finetune/{task}"] = done["full"][f"finetune/{task}"]
            cost = 1.0
        density, rounds, seed = study.mask_density, study.mask_rounds, config.seed
        run = partial(compute.select_weights, task=task, method=method, density=density, rounds=rounds, seed=seed)
        settings = {"method": method, "density": density, "rounds": rounds, "seed": seed, "task": self.data[task]}
        return self.add("Selecting weights", f"masks-{label}-{task}", run, settings, inputs, cost)

    def control(self, task: str) -> str:
        """The next task of the list, which is to be kept while `task` is forgotten."""
        names = list(self.tasks)
        return names[(names.index(task) + 1) % len(names)]

    def _negate(self, label: str, task: str, models: StageMap, scales: tuple[float, ...]) -> Stage[compute.Workshop]:
        control = self.control(task)
        inputs = {key: models[key] for key in (f"probe/{task}", f"probe/{control}", f"finetune/{task}")}
        run = partial(compute.negate, target=task, control=control, scales=scales)
        both = {name: self.data[name] for name in (task, control)}
        settings = {"target": task, "control": control, "scales": list(scales), "data": both}
        splits = [self.tasks[name].splits for name in both]
        cost = sum(len(scales) * len(split["val"]) + 2 * len(split["test"]) for split in splits)
        return self.add("Negation", f"negate-{label}-{task}", run, settings, inputs, cost)

    def _finetune(
        self, label: str, task: str, config: FinetuneConfig, probes: StageMap,
        masks: Stage[compute.Workshop] | None,
    ) -> Stage[compute.Workshop]:  # fmt: skip
        run = partial(compute.train_encoder, task=task, config=config)
        inputs = {f"probe/{task}": probes[f"probe/{task}"]}
        if masks is not None:
            inputs["masks"] = masks
        settings = {"finetune": settings_of(config), "task": self.data[task]}
        cost = self.training_cost(config, len(self.tasks[task].splits["train"]))
        return self.add("Fine-tuning", f"finetune-{label}-{task}", run, settings, inputs, cost)

    def _trained_head(self, label: str, task: str, tuned: Stage[compute.Workshop]) -> Stage[compute.Workshop]:
        run = partial(compute.take_head, task=task)
        return self.add("Fine-tuning", f"head-{label}-{task}", run, {}, {f"finetune/{task}": tuned}, 1)

    def search(self, method: str, label: str, inputs: StageMap, grid: Any, fixed: Any) -> Stage[compute.Workshop]:
        run = partial(compute.merge_searched, method=method, grid=grid, fixed=fixed)
        settings = {"grid": {k: list(v) for k, v in grid.items()}, "fixed": fixed, "data": self.data}
        cost = len(grid["scale"]) * self.images["val"] + self.images["test"]
        return self.add("Merging, search and test", f"merge-{method}-{label}", run, settings, inputs, cost)

    def _cart(self, label: str, inputs: StageMap) -> Stage[compute.Workshop]:
        ratios, scales = self.config.cart_rank_ratios, self.config.cart_scales
        run = partial(compute.merge_cart, rank_ratios=ratios, scales=scales)
        settings = {"rank_ratios": list(ratios), "scales": list(scales), "data": self.data}
        cost = len(ratios) * (len(scales) * self.images["val"] + self.images["test"])
        return self.add("Merging, search and test", f"merge-cart-{label}", run, settings, inputs, cost)

    def _joint(self, label: str, config: FinetuneConfig, probes: StageMap) -> Stage[compute.Workshop]:
        """The upper bound of merging."""
        run = partial(compute.train_jointly, config=config)
        settings = {"finetune": settings_of(config), "data": self.data}
        cost = self.training_cost(config, self.images["train"]) + self.images["test"]
        return self.add("Joint training", f"joint-{label}", run, settings, probes, cost)

    def _random_head(self, label: str, task: str, config: FinetuneConfig) -> Stage[compute.Workshop]:
        """Full fine-tuning without a probe: encoder and random head together."""
        config = dataclasses.replace(config, train_head=True, head_lr=self.config.random_head_lr)
        run = partial(compute.train_from_random_head, task=task, config=config)
        settings = {"finetune": settings_of(config), "task": self.data[task]}
        splits = self.tasks[task].splits
        cost = self.training_cost(config, len(splits["train"])) + len(splits["test"])
        return self.add("Training from a random head", f"random-head-{label}-{task}", run, settings, {}, cost)

    def training_cost(self, config: FinetuneConfig, images: int) -> float:
        image = _TRAINING_COST * (_LINEARIZED_COST if FINETUNE_RECIPES[config.recipe].linearized else 1)
        return image * config.total_steps(images) * config.batch_size * config.accumulation

    def add(
        self, group: str, name: str, run: Callable[..., Any], settings: dict[str, Any],
        inputs: Mapping[str, Stage[compute.Workshop]], cost: float,
    ) -> Stage[compute.Workshop]:  # fmt: skip
        stage = Stage(group, name, run, self._common | settings, dict(inputs), float(cost))
        self.planned.append(stage)
        return stage
