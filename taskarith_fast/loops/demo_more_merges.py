"""Merges that the demo leaves out and the papers' tables have: other searches, statistics of data, adaptation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from taskarith_fast.loops import demo_stages as compute
from taskarith_fast.loops.adamerge import adamerge
from taskarith_fast.loops.demo_stages import State, Workshop
from taskarith_fast.loops.evaluate import batches_of, load_state
from taskarith_fast.loops.fisher import fisher_diagonal
from taskarith_fast.loops.grams import gram_matrices
from taskarith_fast.loops.merge import SCALES, scale_grid
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.stages import Artefact, Made, Stage
from taskarith_fast.merging import merge

if TYPE_CHECKING:
    from taskarith_fast.loops.demo_plan import Planner, StageMap

# Parameters beside the scale, which is searched: the methods' own defaults but for the seed of DARE's draw.
SEARCHED: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.2},
    "consensus": {"threshold": 2},
    "dare": {"density": 0.1, "seed": 0},
    "breadcrumbs": {"density": 0.2, "outliers": 0.1},
}
ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "adamerging_task_wise": ("adamerging", {"task_wise": True}),
    "adamerging": ("adamerging", {}),
    "adamerging_plus_plus": ("adamerging_plus_plus", {}),
    "cart_plus_plus": ("cart_plus_plus", {}),
}

_BATCH = 32
_IMAGES = 256


def more_merges(planner: Planner, label: str, methods: Iterable[str], models: StageMap, masked: bool) -> StageMap:
    """Stages by method; `models` holds probes, fine-tuned encoders and their evaluation."""
    return {method: _stage(planner, label, method, models, masked) for method in methods}


def _stage(planner: Planner, label: str, method: str, models: StageMap, masked: bool) -> Stage[Workshop]:
    if method in SEARCHED:
        scales = scale_grid(planner.config.mask_density)[::2] if masked else SCALES[::2]
        return planner.search(method, label, models, {"scale": scales}, SEARCHED[method])
    tasks = len(planner.tasks)
    words: dict[str, Any] = {"images": _IMAGES}
    run: Callable[..., Any] = _fisher if method == "fisher" else _regmean
    passes = 4 * _IMAGES * tasks
    if method in ADAPTED:
        words = {"method": method, "steps": planner.config.adaptation_steps}
        run, passes = _adapt, 3 * _BATCH * tasks * planner.config.adaptation_steps
    computed = partial(run, **words)
    cost = passes + planner.images["val"] + planner.images["test"]
    settings = {**words, "data": planner.data}
    return planner.add("Merging, search and test", f"merge-{method}-{label}", computed, settings, models, cost)


def _adapt(shop: Workshop, inputs: dict[str, Artefact], *, method: str, steps: int) -> Made:
    """Coefficients learned on the test images without their labels, as the papers do."""
    name, parameters = ADAPTED[method]
    heads = shop.heads(inputs)
    loaders = {task: list(_batches(shop, task, "test")) for task in shop.tasks}
    found = adamerge(
        copy.deepcopy(shop.encoder), shop.base, shop.all_finetuned(inputs), heads, loaders, method=name, steps=steps,
        progress=shop.progress, **parameters,
    )  # fmt: skip
    return _judged(shop, inputs, found.state)


def _fisher(shop: Workshop, inputs: dict[str, Artefact], *, images: int) -> Made:
    """Weighted by the diagonal of each model's Fisher matrix, a class drawn for each training image."""
    heads = shop.heads(inputs)

    def statistic(task: str) -> State:
        load_state(shop.scratch, shop.finetuned(inputs, task))
        batches = _batches(shop, task, "train", images)
        return fisher_diagonal(shop.scratch, batches, labels="sampled", head=heads[task])

    fishers = [statistic(task) for task in shop.tasks]
    return _judged(shop, inputs, merge(shop.base, shop.all_finetuned(inputs), "fisher", fishers=fishers))


def _regmean(shop: Workshop, inputs: dict[str, Artefact], *, images: int) -> Made:
    """Least squares on the inputs of dense layers of training images."""

    def statistic(task: str) -> State:
        load_state(shop.scratch, shop.finetuned(inputs, task))
        return {name: gram.cpu() for name, gram in
                gram_matrices(shop.scratch, _batches(shop, task, "train", images)).items()}  # fmt: skip

    grams = [statistic(task) for task in shop.tasks]
    return _judged(shop, inputs, merge(shop.base, shop.all_finetuned(inputs), "regmean", grams=grams))


def _batches(shop: Workshop, task: str, split: str, most: int | None = None) -> list[Any]:
    images = shop.tasks[task].splits[split]
    device = device_of(shop.encoder)
    batches = list(batches_of(shop.encoder, images, batch_size=_BATCH, image_size=None, device=device))
    return batches if most is None else batches[: max(1, most // _BATCH)]


def _judged(shop: Workshop, inputs: Mapping[str, Artefact], state: Mapping[str, Tensor]) -> Made:
    return {"chosen": {}}, compute.evaluated(shop, shop.heads(inputs), [state], "val", "test")
