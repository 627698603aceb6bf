"""The loops from files to files, as the command line runs them: heads and encoder states are safetensors.

A head's file says which encoder and classes it was trained for; using it with others is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskarith_fast import __version__, data
from taskarith_fast.checkpoint import LazyState, check_destination, load_state_dict, save_state_dict
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.calibrate import calibrate
from taskarith_fast.loops.calibrate_config import CALIBRATE_PRESETS, CalibrationBatches
from taskarith_fast.loops.config import FINETUNE_PRESETS, PROBE_PRESETS, FinetuneConfig, describe
from taskarith_fast.loops.distributed import is_main
from taskarith_fast.loops.evaluate import Evaluation
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.memory_limit import check_memory
from taskarith_fast.loops.memory_plan import MemoryPlan, plan_finetune
from taskarith_fast.loops.probe import probe
from taskarith_fast.loops.runtime import resolve_device, return_freed_memory, threads
from taskarith_fast.loops.samples import check_split, longest_sample, scores_answers
from taskarith_fast.loops.task_vector_files import open_states, save_linearized
from taskarith_fast.masks import Masks
from taskarith_fast.merging.checks import parse_size
from taskarith_fast.models import Head, load_encoder
from taskarith_fast.models.lora import low_rank_targets
from taskarith_fast.models.peft import check_peft_destination, check_peft_targets, save_peft_adapter
from taskarith_fast.progress import Progress


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder a command works on."""

    name: str
    """As for `load_encoder`."""
    image_size: int | None = None
    """Side of the images in pixels; None takes the encoder's."""
    depth: int | None = None
    """Blocks kept, from the first; None keeps all."""
    truncate: int | None = None
    """Tokens that texts are cut to; None refuses texts over the encoder's limit."""

    def load(self) -> nn.Module:
        return load_encoder(self.name, image_size=self.image_size, depth=self.depth, truncate=self.truncate)

    def load_for(self, *splits: data.Split) -> nn.Module:
        """Load the encoder, and refuse splits that it cannot take, before any work."""
        encoder = self.load()
        for split in splits:
            check_split(encoder, split)
        return encoder


def probe_to_file(
    choice: EncoderChoice, task: data.Task, output: Path, *, preset: str, settings: Mapping[str, Any],
    overwrite: bool, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Train a linear head on frozen features and save it; returns what was recorded with it."""
    config = configured(PROBE_PRESETS, preset, settings)
    check_destination(output, overwrite)
    encoder = choice.load_for(task.splits["train"], task.splits["val"])
    if scores_answers(encoder):
        raise ArgumentError(f"encoder must give features, but {choice.name} scores answers and needs no head")
    result = probe(encoder, task, config, progress)
    record = {
        "kind": "head",
        "normalize": result.head.normalize,
        "val_accuracy": result.val_accuracy,
        **_record(choice, task, describe(config), encoder),
    }
    save_state_dict(result.head.state_dict(), output, metadata={"taskarith": json.dumps(record)}, overwrite=overwrite)
    return record


@dataclass(frozen=True)
class FinetuneOptions:
    """What a fine-tuning run from files may have besides its configuration."""

    masks: Path | None = None
    """Masks of taskarith calibrate, for the recipes that need some."""
    peft: Path | None = None
    """A directory for the updates of the recipe "lora", as an adapter of PEFT."""
    max_memory: str | None = None
    """Most memory the run may take, such as "8GB"; it is refused if it needs more."""
    resume: bool = True
    """Keep a checkpoint beside the output while the run lasts, and go on from it if it is there."""


def finetune_to_file(
    choice: EncoderChoice, task: data.Task, head: Path | None, output: Path, *, preset: str,
    settings: Mapping[str, Any], overwrite: bool, progress: Progress, options: FinetuneOptions = FinetuneOptions(),
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune the encoder with the head of a file frozen, and save its state; returns what was recorded with it.

    A model that scores answers has no head.

    A linearized recipe leaves a task vector, not a state.

    Under torchrun every process must call it, and the first one writes.
    """
    config: FinetuneConfig = configured(FINETUNE_PRESETS, preset, settings)
    check_destination(output, overwrite)
    encoder = choice.load_for(task.splits["train"])
    classifier = _head_of(encoder, head, task)
    if options.peft is not None:
        _check_peft(encoder, config, options.peft, overwrite)
    masks = None if options.masks is None else Masks.load(options.masks)
    if options.max_memory is not None:
        limit = parse_size("max_memory", options.max_memory)
        return_freed_memory()
        check_memory(_plan(encoder, classifier, config, masks, task), limit)
    place = output.with_name(f"{output.name}.resume") if options.resume and config.sharding == "none" else None
    result = finetune(encoder, classifier, task, config, progress, masks=masks, checkpoint=place, in_place=True)
    record = {
        "kind": "encoder" if result.tau is None else "linearized task vector",
        "loss": [result.history["loss"][0], result.history["loss"][-1]],
        **_record(choice, task, describe(config), encoder),
    }
    if is_main():
        if result.tau is not None:
            save_linearized(result.tau, encoder, output, record, sparse=masks is not None, overwrite=overwrite)
        else:
            metadata = {"taskarith": json.dumps(record)}
            save_state_dict(result.state, output, metadata=metadata, overwrite=overwrite)
        if options.peft is not None and result.adapter is not None:
            save_peft_adapter(result.adapter, options.peft, choice.name.removeprefix("hf:"), overwrite=overwrite)
        if place is not None:
            place.unlink(missing_ok=True)
    return record


def calibrate_to_file(
    choice: EncoderChoice, task: data.Task | None, head: Path | None, finetuned: Path | None, output: Path, *,
    preset: str, settings: Mapping[str, Any], overwrite: bool, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Choose the weights that a sparse fine-tuning trains, and save their masks; returns what was recorded with them.

    Task and head are for the method "talos", the fine-tuned state for "lota"; each is None otherwise.
    """
    config = configured(CALIBRATE_PRESETS, preset, settings)
    check_destination(output, overwrite)
    options, place = config.options(), resolve_device(config.device)
    if config.method == "talos" and task is None:
        raise ArgumentError("the method 'talos' needs a task and its head; the head is written by taskarith probe")
    encoder = choice.load_for(*([] if task is None else [task.splits[config.split]])).to(place)
    if config.method == "talos" and task is not None:
        options["head"] = _head_of(encoder, head, task).to(place)
        options["batches"] = CalibrationBatches(encoder, task.splits[config.split], config, place)
    if finetuned is not None:
        options["finetuned"] = load_state_dict(finetuned)
    with threads(config.threads):
        masks = calibrate(encoder, progress=progress, **options)
    trained = f"{masks.count()} of {masks.numel}"
    record = {"kind": "masks", "trained": trained, **_record(choice, task, describe(config), encoder)}
    masks.to("cpu").save(output, overwrite=overwrite, metadata={"record": json.dumps(record)})
    return record


def plan_from_files(
    choice: EncoderChoice, task: data.Task, head: Path | None, *, preset: str, settings: Mapping[str, Any],
    masks: Path | None = None,
) -> list[str]:  # fmt: skip
    """What `finetune_to_file` would need in memory, as lines to print."""
    config = configured(FINETUNE_PRESETS, preset, settings)
    found = None if masks is None else Masks.load(masks)
    encoder = choice.load_for(task.splits["train"])
    return _plan(encoder, _head_of(encoder, head, task), config, found, task).lines()


def evaluate_files(
    choice: EncoderChoice, states: Sequence[Path], pairs: Sequence[tuple[data.Task, Path | None]], *, split: str,
    device: str,
    num_threads: int | None, progress: Progress, scale: float = 1.0, linearized: bool = False,
) -> dict[str, Evaluation]:  # fmt: skip
    """Evaluate what `open_states` takes, each task with the head of its file."""
    where = resolve_device(device)
    splits = {task.name: task.splits[split] for task, _ in pairs}
    encoder = choice.load_for(*splits.values()).to(where)
    heads = {task.name: _head_of(encoder, path, task).to(where) for task, path in pairs}
    with threads(num_threads):
        judge = open_states(encoder, heads, splits, states, scale=scale, linearized=linearized)
        return {name: judge(name) for name in progress.track(list(splits), "evaluate")}


def read_head(path: Path, task: data.Task) -> Head:
    """Read a head that `probe_to_file` wrote.

    Raises:
        CheckpointError: If the file is not such a head, or was trained for other classes than the task's.
    """
    state = load_state_dict(path)
    record = _read_record(state)
    if record.get("kind") != "head" or "weight" not in state:
        raise CheckpointError(f"{path}: expected a head written by taskarith probe, got another checkpoint")
    if record["classes"] != list(task.classes):
        raise CheckpointError(
            f"{path}: the head was trained for {len(record['classes'])} classes of {record['task']!r}, "
            f"not for the {len(task.classes)} of {task.name!r}"
        )
    return Head(state["weight"], state.get("bias"), record["normalize"]).requires_grad_(False)


def _head_of(encoder: nn.Module, path: Path | None, task: data.Task) -> nn.Module:
    """The head of a file; of a model that scores answers the identity."""
    if (path is None) != scores_answers(encoder):
        needs = "must be left out for a model that scores answers" if path else "must be given, by --head"
        raise ArgumentError(f"the head of {task.name} {needs}; heads are written by taskarith probe")
    return nn.Identity() if path is None else read_head(path, task)


def _plan(
    encoder: nn.Module, head: nn.Module, config: FinetuneConfig, masks: Masks | None, task: data.Task
) -> MemoryPlan:
    sample = longest_sample(encoder, task.splits["train"])
    return plan_finetune(encoder, head, config, masks, sample=sample, in_place=True)


def _read_record(state: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        record = json.loads(state.metadata["taskarith"]) if isinstance(state, LazyState) else {}
    except (KeyError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _check_peft(encoder: nn.Module, config: FinetuneConfig, path: Path, overwrite: bool) -> None:
    """Refuse an adapter that could not be written, before the run."""
    if config.recipe != "lora":
        raise ArgumentError(f"peft must go with the recipe 'lora', got {config.recipe!r}; leave it out")
    check_peft_targets(low_rank_targets(encoder))
    check_peft_destination(path, overwrite)


def _record(
    choice: EncoderChoice, task: data.Task | None, config: dict[str, Any], encoder: Any = None
) -> dict[str, Any]:
    cut = 0 if task is None or encoder is None else check_split(encoder, task.splits["train"])
    return {
        **({"training_texts_cut": cut} if cut else {}),
        "encoder": dataclasses.asdict(choice),
        **({} if task is None else {"task": task.name, "classes": list(task.classes)}),
        "config": config,
        "tool": f"taskarith_fast {__version__}",
    }


def configured(presets: Mapping[str, Any], preset: str, settings: Mapping[str, Any]) -> Any:
    """A preset with some fields replaced; an unknown preset or field is refused by name."""
    if preset not in presets:
        raise ArgumentError(f"preset must be one of {', '.join(presets)}; got {preset!r}")
    unknown = [name for name in settings if name not in vars(presets[preset])]
    if unknown:
        raise ArgumentError(f"settings must be among {', '.join(vars(presets[preset]))}; got {unknown[0]!r}")
    try:
        return replace(presets[preset], **settings)
    except TypeError as error:
        raise ArgumentError(f"settings {dict(settings)}: {error}") from None
