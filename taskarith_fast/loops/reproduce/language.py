"""The language columns of TaLoS's tables: the same protocol on texts, beside vision and the published T5 columns.

T5's weights are in no package, so that MiniLM and the shipped tasks of texts stand in for T5 and the paper's seven.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from taskarith_fast import data
from taskarith_fast.analysis.outcome import Outcome, Table
from taskarith_fast.errors import BackendError, CheckpointError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.demo import at_device, limit_tasks
from taskarith_fast.loops.demo_config import TEXT_PRESETS
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.published import Published
from taskarith_fast.loops.reproduce.setting import Setting
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.models import load_encoder

_HERE, _TEXTS = "here, ", "here, texts, "


@dataclasses.dataclass(frozen=True)
class TextSetting(Setting):
    """The shipped tasks of texts on the shipped text encoder."""

    def recipe(self, key: str) -> FinetuneConfig:
        """How a recipe is trained on texts."""
        epochs = next(iter(TEXT_PRESETS["quick"].recipes.values())).epochs
        config = TEXT_PRESETS["default"].recipes[key]
        return dataclasses.replace(config, epochs=epochs) if "quick" in self.config.preset else config


def text_setting(beside: Setting) -> Setting:
    """Encoder, tasks and sizes for texts, as small and with as many seeds as the setting for images.

    Raises:
        CheckpointError, BackendError: If the encoder is not to be had.
    """
    preset = TEXT_PRESETS["quick" if beside.config.preset == "quick" else "default"]
    config = dataclasses.replace(preset, recipes={}, seeds=beside.config.seeds, negation_scales=())
    config = dataclasses.replace(config, adaptation_steps=beside.config.adaptation_steps)
    place = str(device_of(beside.encoder))
    tasks = limit_tasks(data.load_text_tasks(config.tasks), config)
    return TextSetting(at_device(config, place), load_encoder(config.encoder).to(place), tasks, papers=False)


def beside(bench: Bench, published: Published, *, protocol: Callable[[Bench, Published], Outcome]) -> Outcome:
    """Run a protocol on images and on texts; the first table gets columns for texts, and checks are of both."""
    images = protocol(bench, published)
    try:
        setting = text_setting(bench.setting)
    except (CheckpointError, BackendError) as error:
        return _noted(images, f"No columns for texts: {error}.")
    texts = dataclasses.replace(bench, setting=setting)
    found = protocol(texts, published)
    bench.cost |= texts.cost
    checks = [dataclasses.replace(check, statement=f"on texts, {check.statement}") for check in found.checks]
    table = _joined(images.tables[0], found.tables[0])
    note = (
        f"Texts: {setting.config.encoder} on {', '.join(setting.tasks)}, at most {setting.config.train} training texts "
        "each, in place of the paper's T5 on seven tasks, since T5's weights are in no package."
    )
    return _noted(Outcome([table, *images.tables[1:]], [*images.checks, *checks], images.figures), note)


def _joined(images: Table, texts: Table) -> Table:
    """A table with what was found on texts behind what was found on images."""
    ours = [place for place, column in enumerate(texts.columns) if column.startswith(_HERE)]
    end = ours[-1] + 1
    named = [_TEXTS + texts.columns[place].removeprefix(_HERE) for place in ours]
    rows = [
        [*row[:end], *(other[place] for place in ours), *row[end:]]
        for row, other in zip(images.rows, texts.rows, strict=True)
    ]
    return Table(images.title, [*images.columns[:end], *named, *images.columns[end:]], rows, images.note)


def _noted(outcome: Outcome, note: str) -> Outcome:
    first = outcome.tables[0]
    first = dataclasses.replace(first, note=f"{first.note} {note}")
    return dataclasses.replace(outcome, tables=[first, *outcome.tables[1:]])
