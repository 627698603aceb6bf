"""The main job: probe, fine-tune, merge and evaluate real tasks, and write a report.
 Everything goes to one folder: ``report.html``, ``results.json``, ``table.md``, ``figures/*.png``, and
``stages/`` with what every finished stage left. Run again, it reuses finished stages whose configuration has
not changed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from taskarith_fast import data
from taskarith_fast.analysis.figures import all_figures, samples_figure
from taskarith_fast.analysis.figures_theme import THEMES, in_both
from taskarith_fast.analysis.report import markdown_table, render_report
from taskarith_fast.analysis.results import Results, write_text
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.demo_config import DemoConfig, choose_preset
from taskarith_fast.loops.demo_plan import Plan, make_plan
from taskarith_fast.loops.demo_stages import Workshop
from taskarith_fast.loops.results import collect
from taskarith_fast.loops.runtime import resolve_device
from taskarith_fast.loops.runtime import threads as limit_threads
from taskarith_fast.loops.stages import Artefact, Store
from taskarith_fast.loops.ticker import Ticker
from taskarith_fast.models import load_encoder

_SAMPLES = 12


def run_demo(
    out: Path,
    *,
    quick: bool = False,
    everything: bool = False,
    seeds: int = 0,
    texts: bool = False,
    device: str = "auto",
    threads: int = 0,
) -> Path:
    """Run the demo on the shipped tasks and backbone.

    Args:
        out: Folder for all results; made if it is missing.
        quick: A small version.
        everything: Every recipe, negation, and the rows that train most, on fewer images.
        texts: The shipped tasks of texts and the backbone that reads them, in place of images.
        seeds: Number of seeds; 0 takes the size's own.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        threads: CPU threads; 0 leaves torch's number.

    Returns:
        Path of the report.

    Raises:
        ArgumentError: If an argument is out of its domain, or `out` is a file.
    """
    config = choose_preset(quick=quick, everything=everything, seeds=seeds, texts=texts)
    if threads < 0:
        raise ArgumentError(f"threads must be at least 0, got {threads}")
    place = resolve_device(device)
    make_folder(out)
    tasks = limit_tasks((data.load_text_tasks if texts else data.load_tasks)(config.tasks), config)
    with limit_threads(threads or None):
        encoder = load_encoder(config.encoder, image_size=config.image_size, depth=config.depth).to(place)
        config = at_device(config, str(place))
        return run_study(config, encoder, tasks, out)


def run_study(config: DemoConfig, encoder: nn.Module, tasks: Mapping[str, data.Task], out: Path) -> Path:
    """Run a study on any encoder and tasks.

    Args:
        config: What to do; its encoder, depth, image size, tasks and limits are taken as done.
        encoder: Pre-trained encoder on the device to use; not changed.
        tasks: Task name -> task.
        out: Folder for all results.

    Returns:
        Path of the report.
    """
    plan = make_plan(config, encoder, tasks)
    shop = Workshop(encoder, tasks)
    artefacts, reused = run_stages(plan, Store(out / "stages"), shop)
    results = collect(config, plan, artefacts, reused, encoder, tasks)
    return write_report(results, tasks, encoder, out)


def run_stages(plan: Plan, store: Store, shop: Workshop) -> tuple[dict[str, Artefact], set[str]]:
    """Compute the stages that are not finished, in order, with the time left on the standard error stream.

    Returns:
        Artefacts by stage key, and the keys of the stages that were found finished.
    """
    artefacts = {stage.key: found for stage in plan.stages if (found := store.find(stage))}
    reused = set(artefacts)
    todo = [stage for stage in plan.stages if stage.key not in artefacts]
    ticker = Ticker(sum(stage.cost for stage in todo), len(reused))
    shop.progress = ticker.progress
    with ticker:
        for stage in todo:
            ticker.begin(stage.name, stage.cost)
            shop.advance = ticker.advance
            inputs = {name: artefacts[source.key] for name, source in stage.inputs.items()}
            store.compute(stage, shop, inputs)
            # Read back from disk, so that the models of many seeds are not all held in memory.
            artefacts[stage.key] = _found(store.find(stage), stage.name)
            ticker.end()
    return artefacts, reused


def write_report(results: Results, tasks: Mapping[str, data.Task], encoder: nn.Module, out: Path) -> Path:
    """Write results, tables, figures and the page; returns the page's path."""
    results.save(out / "results.json")
    tables = (
        f"{title[:1].upper()}{title[1:]}\n\n{markdown_table(results, key)}" for key, title in results.recipes.items()
    )
    write_text(out / "table.md", "\n".join(tables))
    figures = all_figures(results)
    if results.samples == "images":
        names, strips = _samples(tasks, cast(int, encoder.image_size))
        figures["tasks"] = in_both(lambda: samples_figure(names, strips))
    (out / "figures").mkdir(exist_ok=True)
    for name, images in figures.items():
        for theme, image in zip(THEMES, images, strict=True):
            (out / "figures" / f"{name}.{theme}.png").write_bytes(image)
    write_text(out / "report.html", render_report(results, figures))
    return out / "report.html"


def limit_tasks(tasks: Mapping[str, data.Task], config: DemoConfig) -> dict[str, data.Task]:
    """At most so many images of each split as the configuration says, drawn once and for all seeds alike."""
    most = {"train": config.train, "val": config.val, "test": config.test}
    return {
        name: dataclasses.replace(task, splits={split: _first(task.splits[split], most[split]) for split in most})
        for name, task in tasks.items()
    }


def make_folder(out: Path) -> None:
    """Make the folder of results, if it can be written to; ArgumentError otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArgumentError(f"out must be a folder or not exist yet, but {out} or a part of it is a file") from None
    if not os.access(out, os.W_OK):
        raise ArgumentError(f"out must be a folder that can be written to, {out} cannot")


def at_device(config: DemoConfig, device: str) -> DemoConfig:
    """The configuration with the device resolved in its parts."""
    recipes = {key: dataclasses.replace(recipe, device=device) for key, recipe in config.recipes.items()}
    return dataclasses.replace(config, probe=dataclasses.replace(config.probe, device=device), recipes=recipes)


def _first(split: data.Split, most: int) -> data.Split:
    if len(split) <= most:
        return split
    return data.SubsetSplit(split, torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:most])


def _found(artefact: Artefact | None, name: str) -> Artefact:
    if artefact is None:
        raise OSError(f"stage {name} was written but cannot be read back; is the disk full?")
    return artefact


def _samples(tasks: Mapping[str, data.Task], image_size: int) -> tuple[list[str], list[np.ndarray]]:
    strips = []
    for task in tasks.values():
        split = task.splits["train"]
        count = min(_SAMPLES, len(split))
        chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
        images, _ = data.SubsetSplit(split, chosen).at_size(image_size).get(range(count))
        strips.append(images.permute(0, 2, 3, 1).numpy())
    return list(tasks), strips
