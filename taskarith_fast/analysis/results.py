"""What a merging study found, as one document: the schema of ``results.json``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from taskarith_fast.errors import DataError

SCHEMA_VERSION = 3


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Document):
    """A number with its standard error over the test (or validation) images, both as fractions of one."""

    value: float
    stderr: float


class TaskFacts(_Document):
    """A task as it was used: how many images or texts of each split, and where they come from."""

    name: str
    classes: int
    train: int
    val: int
    test: int
    licence: str
    source: str


class ExampleText(_Document):
    """One training text of a task, to show."""

    task: str
    text: str
    label: str


class Row(_Document):
    """One method under one recipe: test accuracy of every task and their mean, averaged over the seeds."""

    recipe: str
    """Key of the fine-tuning recipe; empty for rows that fine-tune nothing."""
    method: str
    label: str
    merged: bool
    """Whether ONE encoder serves all tasks (and the row competes for the best merged model)."""
    hyperparameters: list[dict[str, float]]
    """What validation chose, one entry a seed."""
    accuracy: dict[str, Measured]
    mean: Measured
    normalized: dict[str, Measured]
    """Accuracy over that of the individually fine-tuned encoder, task by task."""
    normalized_mean: Measured
    over_probe: Measured
    """Mean accuracy minus the linear probe's; the error is that of the paired difference."""
    seed_std: float | None
    """Standard deviation of `mean` over the seeds; None with one seed."""


class ScaleCurve(_Document):
    """Validation accuracy along the scale of one method, averaged over the seeds."""

    recipe: str
    method: str
    label: str
    scale: list[float]
    val_mean: list[float]
    val_normalized: list[float]
    """The score that chooses: mean over tasks of accuracy / accuracy of the fine-tuned encoder."""
    val_stderr: list[float]
    """Standard error of `val_normalized` over the validation images."""
    chosen: list[float]


class RankCurve(_Document):
    """CART over rank ratio R and scale S: validation grid, and test accuracy along R at the chosen scale."""

    recipe: str
    rank_ratio: list[float]
    scale: list[float]
    val_mean: list[list[float]]  # [R][S]
    val_normalized: list[list[float]]  # [R][S]
    chosen_rank_ratio: list[float]
    chosen_scale: list[float]
    test_mean: list[float]  # [R]
    test_stderr: list[float]  # [R]


class Curves(_Document):
    """Every curve of the study."""

    scale: list[ScaleCurve]
    cart_rank: list[RankCurve]


class CosineMap(_Document):
    """Cosines between the task vectors of one recipe, averaged over the seeds."""

    recipe: str
    names: list[str]
    matrix: list[list[float]]


class Cost(_Document):
    """What fine-tuning one task by one recipe costs: medians over the runs, the largest of the peaks."""

    recipe: str
    trained: int
    """Weights that are trained."""
    forward_backward: float
    """Seconds of an optimizer step up to its gradients."""
    step: float
    """Seconds of clipping and of the optimizer."""
    peak_rss_mb: float
    """Largest resident size of the process, its libraries included."""
    vector_bytes: float
    """Size of the task vector as it is stored."""


class Negation(_Document):
    """One task forgotten by subtracting its task vector, another kept: test accuracies, averaged over the seeds."""

    recipe: str
    target: str
    control: str
    scale: list[float]
    """What validation chose, one entry a seed."""
    target_before: Measured
    target_after: Measured
    control_before: Measured
    control_after: Measured


class Linearity(_Document):
    """One fine-tuned encoder on its own task, and the same linearized post hoc, averaged over the seeds."""

    recipe: str
    task: str
    ordinary: Measured
    """Test accuracy at theta_0 + tau."""
    linearized: Measured
    """Of f(x; theta_0) + J tau."""
    difference: Measured
    """linearized - ordinary, paired by image."""


class SensitivityCurve(_Document):
    """How far per-image gradients have moved from those of the start, over the steps of one run of one task."""

    recipe: str
    task: str
    step: list[int]
    change: list[float]
    """E ||g - g_0||^2 / E ||g_0||^2, averaged over the seeds."""


class StageTime(_Document):
    """What one stage took when it was computed."""

    group: str
    stage: str
    seconds: float
    peak_rss_mb: float
    peak_gpu_mb: float | None
    reused: bool
    """Whether this run found the stage finished; its time is then that of the run that computed it."""


class Results(_Document):
    """The whole study."""

    schema_version: int
    preset: str
    config: dict[str, Any]
    recipes: dict[str, str]
    """Recipe key to its description, in the order of the report."""
    seeds: list[int]
    encoder: dict[str, str]
    """What was fine-tuned, in words."""
    versions: dict[str, str]
    machine: dict[str, str]
    samples: Literal["images", "texts"] = "images"
    """What is classified."""
    examples: list[ExampleText] = []
    tasks: list[TaskFacts]
    rows: list[Row]
    curves: Curves
    cosine: list[CosineMap]
    costs: list[Cost]
    negation: list[Negation]
    linearity: list[Linearity]
    sensitivity: list[SensitivityCurve]
    timing: list[StageTime]

    def row(self, method: str, recipe: str) -> Row | None:
        """The row of a method under a recipe; rows that fine-tune nothing belong to every recipe."""
        return next((r for r in self.rows if r.method == method and r.recipe in ("", recipe)), None)

    def save(self, path: Path) -> None:
        """Write the document as JSON; the file is absent, old, or complete."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a document back.

        Raises:
            DataError: If the file is not a results document of this schema.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            first = str(error).splitlines()[0]
            raise DataError(f"{path.name} must be a results document of schema {SCHEMA_VERSION}: {first}") from None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file by way of a temporary neighbour, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
