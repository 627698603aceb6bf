"""Plan a merge of files from their headers alone: what is wrong, what will be read, written and held in memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from taskarith_fast.checkpoint.header import Entry
from taskarith_fast.checkpoint.shards import split_shards
from taskarith_fast.checkpoint.sources import Source
from taskarith_fast.errors import ArgumentError, CheckpointError, TaskarithError
from taskarith_fast.merging.checks import FLOATS, check_output, format_size, is_directory, parse_size
from taskarith_fast.merging.estimate import estimate_seconds
from taskarith_fast.merging.methods import Method, find_method
from taskarith_fast.merging.pieces import Piece
from taskarith_fast.merging.plan_inputs import Copy, PathLike, collecting, open_inputs
from taskarith_fast.merging.plan_memory import cut_plan, resident_memory
from taskarith_fast.merging.plan_words import describe, plan_lines

DEFAULT_MEMORY = 40 << 20  # two buffers that stay in a last-level cache of 32 MB: a quarter faster than 80 MiB
_HEADER_ROOM = 1 << 16  # bytes of header and metadata of a file, about


@dataclass
class Plan:
    """What a merge of files will do.

    Attributes:
        method: Its name.
        parameters: The method's, defaults filled in.
        sources: The base and the T fine-tuned models; empty if one cannot be opened.
        statistics: What the method reads beside them, one a task; empty for methods that need weights only.
        statistics_name: The argument that brings them, "" if none does.
        output: Destination, a file or a directory.
        directory: Whether it is a directory.
        tied: Other names of tied tensors -> the name in `entries`, under which the inputs have them too.
        copies: What an input holds apart though another ties it.
        entries: Every output tensor, in the order of the base.
        merged: The floating tensors, sorted by name.
        copied: All others, in the order of the base.
        shards: The tensors of each output file.
        pieces: What is read and merged at once, in order.
        bins: Counters of each task's histogram, for a global threshold; 0 for the other methods.
        problems: Everything that stops the merge.
        notes: What a reader should know.
        passes: How often the merged tensors are read.
        read_bytes: Bytes read for the arithmetic; hashing reads every file once more, from the page cache.
        hash_bytes: Bytes hashed.
        write_bytes: Bytes written.
        buffer_bytes: Memory for buffers and temporaries, besides the interpreter and its libraries.
        peak_bytes: Resident memory expected at the most.
        seconds: Rough time, from this machine's bandwidth.
    """

    method: str
    parameters: dict[str, Any]
    output: Path
    directory: bool
    sources: list[Source] = field(default_factory=list)
    statistics: list[Source] = field(default_factory=list)
    statistics_name: str = ""
    tied: dict[str, str] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    merged: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    shards: list[dict[str, Entry]] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    bins: int = 0
    problems: list[TaskarithError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passes: int = 1
    read_bytes: int = 0
    hash_bytes: int = 0
    write_bytes: int = 0
    slot_bytes: int = 0
    large_bytes: int = 0
    buffer_bytes: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0

    @property
    def tasks(self) -> int:
        return len(self.sources) - 1

    @property
    def inputs(self) -> list[Source]:
        """All that is read: the models, then the statistics."""
        return [*self.sources, *self.statistics]

    def raise_first(self) -> None:
        """Raise the first problem, saying how many more there are."""
        if self.problems:
            more = len(self.problems) - 1
            hint = f" (and {more} more problem{'s' if more > 1 else ''}: taskarith check lists all)" if more else ""
            raise type(self.problems[0])(f"{self.problems[0]}{hint}")

    def lines(self) -> list[str]:
        """The plan in words, a line each."""
        return plan_lines(self)


def plan_merge(
    base: PathLike,
    finetuned: Sequence[PathLike],
    output: PathLike,
    *,
    method: str = "task_arithmetic",
    dtype: str | torch.dtype | None = None,
    shard_size: int | str | None = None,
    memory: int | str | None = None,
    overwrite: bool = False,
    hash_inputs: bool = True,
    **parameters: Any,
) -> Plan:
    """Check a merge of files, from their headers, and foretell what it takes; nothing is raised or written.

    Args:
        base: The pre-trained checkpoint.
        finetuned: One or more fine-tuned checkpoints.
        output: Destination: a name ending in ``.safetensors``, or a directory.
        method: A name from ``merge_methods()``.
        dtype: Type of the merged tensors, "float32", "bfloat16" or "float16"; None keeps that of the base.
        shard_size: Bytes of tensors in a file of an output directory, such as 5_000_000_000 or "5GB".
        memory: Bytes for buffers, such as "256MB"; methods that need whole tensors take T of the largest besides.
        overwrite: Whether an existing output may be replaced.
        hash_inputs: Whether the inputs will be hashed.
        **parameters: The method's own parameters; fishers and grams are lists of paths, one a task.

    Returns:
        The plan; its `problems` are empty if the merge can run.
    """
    plan = Plan(method, dict(parameters), Path(output), is_directory(output, shard_size))
    with collecting(plan):
        row = find_method(method, parameters)
        statistics = row.streaming.statistics
        plan.parameters = {**row.parameters, **parameters}
        paths = plan.parameters.pop(statistics.parameter) if statistics else ()
        with collecting(plan):
            _check_parameters(row, len(finetuned), plan.parameters)
        with collecting(plan):
            check_output(plan.output, plan.directory, overwrite)
        limit = parse_size("shard_size", shard_size) if shard_size is not None else None
        budget = parse_size("memory", memory) if memory is not None else DEFAULT_MEMORY
        out = _out_dtype(dtype)
        if not finetuned:
            raise ArgumentError("finetuned must name at least one checkpoint, got none")
        open_inputs(plan, [base, *finetuned], statistics, paths)
        if not plan.problems:
            _lay_out(plan, row, out, limit, budget, hash_inputs)
    return plan


def _check_parameters(row: Method, tasks: int, parameters: Mapping[str, Any]) -> None:
    """Let the method itself look at its parameters, on a model of one weight."""
    kind = row.streaming.statistics
    if row.needs != "weights only" and not kind:
        return
    one = {"x": torch.zeros(1, 1)}
    models = [one] * max(tasks, 1)
    statistics = {kind.parameter: [{"x": torch.ones(1, 1)}] * len(models)} if kind else {}
    try:
        row.function(one, models, **parameters, **statistics)
    except TaskarithError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArgumentError(f"a parameter has a value of the wrong type: {error}") from None


def _out_dtype(dtype: str | torch.dtype | None) -> str | None:
    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    word = str(dtype).removeprefix("torch.")
    if dtype is not None and word not in names:
        raise ArgumentError(f"dtype must be one of {', '.join(names)}; got {dtype!r}")
    return names.get(word)


def _lay_out(plan: Plan, row: Method, out: str | None, shard_size: int | None, budget: int, hash_inputs: bool) -> None:
    base = plan.sources[0].entries
    plan.merged = tuple(sorted(name for name in base if base[name].dtype in FLOATS))
    plan.copied = tuple(name for name in base if base[name].dtype not in FLOATS)
    floats = set(plan.merged)
    plan.entries = {n: Entry(out if out and n in floats else e.dtype, e.shape) for n, e in base.items()}
    plan.shards = split_shards(plan.entries, shard_size)
    cut_plan(plan, row, budget)
    once = sum(source.entries[n].nbytes for source in plan.sources for n in plan.merged)
    beside = sum(entry.nbytes for source in plan.statistics for entry in source.entries.values())
    whole = sum(source.entries[n].nbytes for source in plan.sources for n in plan.copied)
    plan.passes = row.streaming.passes(plan.parameters)
    kind = row.streaming.statistics
    plan.read_bytes = plan.passes * once + whole + (kind.passes(plan.parameters) * beside if kind else 0)
    plan.hash_bytes = sum(f.stat().st_size for s in plan.inputs for f in s.files) if hash_inputs else 0
    plan.write_bytes = sum(entry.nbytes for entry in plan.entries.values()) + _HEADER_ROOM * len(plan.shards)
    plan.peak_bytes = resident_memory() + plan.buffer_bytes
    plan.seconds = estimate_seconds(plan)
    _check_space(plan)
    describe(plan)


def _check_space(plan: Plan) -> None:
    parent = next(p for p in (plan.output.absolute().parent, *plan.output.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < plan.write_bytes:
        plan.problems.append(
            CheckpointError(
                f"{plan.output}: needs {format_size(plan.write_bytes)} of free disk, {format_size(free)} are left"
            )
        )
