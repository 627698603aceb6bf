"""Plan a merge of files from their headers alone: what is wrong, what will be read, written and held in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from taskarith_fast.checkpoint.header import Entry
from taskarith_fast.checkpoint.shards import split_shards
from taskarith_fast.checkpoint.sources import TORCH_DTYPES, Source, open_source
from taskarith_fast.errors import ArgumentError, CheckpointError, TaskarithError
from taskarith_fast.merging.checks import FLOATS, check_output, differences, format_size, is_directory, parse_size
from taskarith_fast.merging.estimate import estimate_seconds
from taskarith_fast.merging.methods import Method, find_method
from taskarith_fast.merging.pieces import Piece, cut_tensor
from taskarith_fast.merging.pipeline import loaded_bytes
from taskarith_fast.merging.statistics import Statistics
from taskarith_fast.merging.ties_threshold import count_dtype

PathLike = str | os.PathLike[str]
DEFAULT_MEMORY = 80 << 20
_MOST_COUNTS = 1 << 20  # bins of a histogram
_SOLVER_BYTES = 40  # five float64 copies of a matrix, and of its Gram matrix
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
        if self.problems:
            return [f"problem: {problem}" for problem in self.problems]
        files = len(self.shards)
        return [
            f"method: {self.method} " + ", ".join(f"{k}={v}" for k, v in self.parameters.items()),
            f"tensors: {len(self.merged)} merged, {len(self.copied)} copied, in {files} file{'s' if files > 1 else ''}",
            f"reads: {format_size(self.read_bytes)} in {self.passes} pass{'es' if self.passes > 1 else ''}; "
            f"hashes {format_size(self.hash_bytes)}; writes {format_size(self.write_bytes)}",
            f"memory: {format_size(self.peak_bytes)} at the peak, {format_size(self.buffer_bytes)} of it buffers",
            f"time: about {self.seconds:.1f} s",
            *(f"note: {note}" for note in self.notes),
        ]


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
    with _collecting(plan):
        row = find_method(method, parameters)
        statistics = row.streaming.statistics
        plan.parameters = {**row.parameters, **parameters}
        paths = plan.parameters.pop(statistics.parameter) if statistics else ()
        with _collecting(plan):
            _check_parameters(row, len(finetuned), plan.parameters)
        with _collecting(plan):
            check_output(plan.output, plan.directory, overwrite)
        limit = parse_size("shard_size", shard_size) if shard_size is not None else None
        budget = parse_size("memory", memory) if memory is not None else DEFAULT_MEMORY
        out = _out_dtype(dtype)
        if not finetuned:
            raise ArgumentError("finetuned must name at least one checkpoint, got none")
        plan.sources = _open(plan, [base, *finetuned])
        if plan.sources:
            plan.problems += differences(plan.sources)
        if statistics:
            _open_statistics(plan, statistics, paths, len(finetuned))
        if not plan.problems:
            _lay_out(plan, row, out, limit, budget, hash_inputs)
    return plan


class _collecting:
    """Turns an error of the package into a problem of the plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> bool:
        if isinstance(error, TaskarithError):
            self._plan.problems.append(error)
            return True
        return False


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


def _open(plan: Plan, paths: Sequence[PathLike]) -> list[Source]:
    """All of them, or none and why."""
    sources = []
    for path in paths:
        with _collecting(plan):
            sources.append(_model(open_source(path)))
    return sources if len(sources) == len(paths) else []


def _model(source: Source) -> Source:
    """The source, if it is not a task vector."""
    if getattr(source, "metadata", {}).get("taskarith", "").endswith("task_vector"):
        raise CheckpointError(
            f"{source.path}: expected a model, got a task vector; apply it to the base, or use merge_task_vectors"
        )
    return source


def _open_statistics(plan: Plan, kind: Statistics, paths: Any, tasks: int) -> None:
    plan.statistics_name = kind.parameter
    with _collecting(plan):
        kind.check_count(paths, tasks)
        if not all(isinstance(path, (str, os.PathLike)) for path in paths):
            raise ArgumentError(f"{kind.parameter} must be paths when files are merged, got {type(paths[0]).__name__}")
        plan.statistics = _open(plan, paths)
        if plan.sources and plan.statistics:
            base = plan.sources[0].entries
            shapes = {name: base[name].shape for name in base if base[name].dtype in FLOATS}
            plan.problems += kind.misfits(shapes, [source.entries for source in plan.statistics], plan.parameters)


def _lay_out(plan: Plan, row: Method, out: str | None, shard_size: int | None, budget: int, hash_inputs: bool) -> None:
    base = plan.sources[0].entries
    plan.merged = tuple(sorted(name for name in base if base[name].dtype in FLOATS))
    plan.copied = tuple(name for name in base if base[name].dtype not in FLOATS)
    floats = set(plan.merged)
    plan.entries = {n: Entry(out if out and n in floats else e.dtype, e.shape) for n, e in base.items()}
    plan.shards = split_shards(plan.entries, shard_size)
    _cut(plan, row, budget)
    once = sum(source.entries[n].nbytes for source in plan.sources for n in plan.merged)
    beside = sum(entry.nbytes for source in plan.statistics for entry in source.entries.values())
    whole = sum(source.entries[n].nbytes for source in plan.sources for n in plan.copied)
    plan.passes = row.streaming.passes(plan.parameters)
    kind = row.streaming.statistics
    plan.read_bytes = plan.passes * once + whole + (kind.passes(plan.parameters) * beside if kind else 0)
    plan.hash_bytes = sum(f.stat().st_size for s in plan.inputs for f in s.files) if hash_inputs else 0
    plan.write_bytes = sum(entry.nbytes for entry in plan.entries.values()) + _HEADER_ROOM * len(plan.shards)
    plan.peak_bytes = _resident() + plan.buffer_bytes
    plan.seconds = estimate_seconds(plan)
    _check_space(plan)
    _describe(plan, row)


def work_dtype(plan: Plan, name: str) -> torch.dtype:
    """Type of the arithmetic on a tensor: the models' own where all agree with the output, else float32."""
    kinds = {source.entries[name].dtype for source in plan.sources} | {plan.entries[name].dtype}
    return TORCH_DTYPES[kinds.pop()] if len(kinds) == 1 else torch.float32


def _cut(plan: Plan, row: Method, budget: int) -> None:
    """Pieces, and the memory they take: two to be read, one in the works, two to be written."""
    models = len(plan.sources)
    counter = count_dtype(sum(plan.entries[name].numel for name in plan.merged)).itemsize
    if row.streaming.histograms(plan.parameters):
        plan.bins = max(1 << 12, min(_MOST_COUNTS, budget // 2 // (counter * plan.tasks)))
    room = budget - counter * plan.bins * plan.tasks
    extra = 0
    for name in plan.merged:
        shape = plan.entries[name].shape
        work = work_dtype(plan, name)
        statistics = [s.entries[name] for s in plan.statistics if name in s.entries]
        kind = row.streaming.statistics
        whole = bool(kind and kind.whole and statistics)
        inputs = sum(TORCH_DTYPES[s.entries[name].dtype].itemsize for s in plan.sources)
        inputs += 0 if whole else sum(TORCH_DTYPES[entry.dtype].itemsize for entry in statistics)
        mixed = (
            work != TORCH_DTYPES[plan.sources[0].entries[name].dtype]
            or len({s.entries[name].dtype for s in plan.sources}) > 1
        )
        outputs = 3 * work.itemsize + (2 * TORCH_DTYPES[plan.entries[name].dtype].itemsize if mixed else 0)
        copies = 4 * models if mixed else 0
        cut = "tensor" if whole else row.streaming.cut_of(name, shape, plan.parameters)
        pieces = cut_tensor(name, shape, cut, max(1, room // (2 * inputs + copies + outputs)))
        plan.pieces += pieces
        most = max(piece.numel for piece in pieces)
        own = 8 * models * most if cut == "tensor" else 0  # float32 deltas, and as much again
        own = _SOLVER_BYTES * (most + statistics[0].numel) if whole else own
        extra = max(extra, most * (copies + outputs) + own)
    sizes = [loaded_bytes(plan.inputs, piece) for piece in plan.pieces]
    fitting = max(1, room // 2)
    plan.slot_bytes = max([1, *(size for size in sizes if size <= fitting)])
    plan.large_bytes = max([0, *(size for size in sizes if size > fitting)])
    held = sum(source.resident for source in plan.inputs)
    if row.streaming.cut == "model":
        held += 2 * sum(s.entries[n].nbytes for s in plan.sources for n in plan.merged)
    plan.buffer_bytes = 2 * plan.slot_bytes + plan.large_bytes + extra + counter * (plan.bins + 1) * plan.tasks + held


def _check_space(plan: Plan) -> None:
    parent = next(p for p in (plan.output.absolute().parent, *plan.output.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < plan.write_bytes:
        plan.problems.append(
            CheckpointError(
                f"{plan.output}: needs {format_size(plan.write_bytes)} of free disk, {format_size(free)} are left"
            )
        )


def _describe(plan: Plan, row: Method) -> None:
    for source in plan.inputs:
        if source.resident:
            plan.notes.append(f"{source.path.name} is no safetensors file: its tensors are held in memory")
        for names in source.tied:
            plan.notes.append(f"{source.path.name}: {', '.join(names)} share memory; the output holds each of them")
    if row.streaming.cut == "model":
        plan.notes.append(f"{plan.method} looks at all tensors at once: the models are held in memory")
    if any(work_dtype(plan, n) != TORCH_DTYPES[plan.entries[n].dtype] for n in plan.merged) or any(
        len({s.entries[n].dtype for s in plan.sources}) > 1 for n in plan.merged
    ):
        plan.notes.append("dtypes differ: the arithmetic runs in float32 and is rounded to the output's dtype")
    if plan.statistics:
        rest = [name for name in plan.merged if name not in plan.statistics[0].entries]
        plan.notes += [f"averaged, as they have no {plan.statistics_name}: {', '.join(rest)}"] if rest else []
    if plan.copied:
        plan.notes.append(f"copied from base, and checked to be equal in all models: {', '.join(plan.copied)}")


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 300 << 20
