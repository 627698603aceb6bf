"""Run a plan: read ahead, merge piece by piece, write behind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from taskarith_fast.checkpoint.shards import ShardWriter
from taskarith_fast.checkpoint.sources import TORCH_DTYPES, Source
from taskarith_fast.errors import CheckpointError
from taskarith_fast.merging.common import num_threads
from taskarith_fast.merging.methods import METHODS
from taskarith_fast.merging.pieces import Piece, cut_tensor
from taskarith_fast.merging.pipeline import Buffers, WriteBehind, loaded_bytes, read_ahead, read_piece
from taskarith_fast.merging.plan import Plan
from taskarith_fast.merging.plan_inputs import Copy
from taskarith_fast.merging.plan_memory import work_dtype
from taskarith_fast.merging.streaming import FunctionPasses, Passes
from taskarith_fast.merging.tied_names import contradiction
from taskarith_fast.progress import Progress

_COPY_BYTES = 1 << 22


def run_plan(plan: Plan, files: ShardWriter, *, device: torch.device, progress: Progress) -> None:
    """Merge what the plan says into open files.

    Args:
        plan: A plan without problems.
        files: Where the tensors go.
        device: Where the arithmetic runs.
        progress: Shows megabytes read and the time left.

    Raises:
        CheckpointError: If a value is not finite, or tensors that are to be copied differ.
    """
    method = METHODS[plan.method]
    for copy in plan.copies:
        _check_copy(copy)
    for name in plan.copied:
        _copy(plan, name, files)
    start = method.streaming.start
    threads = torch.get_num_threads() if method.streaming.heavy else share_of_threads()
    passes: Passes = start(plan) if start else FunctionPasses(method.function, plan)
    reader = _Reader(plan, device, progress)
    with torch.no_grad(), num_threads(threads), _explaining(reader), WriteBehind(files) as writer:
        passes.survey(reader.read)
        for pieces in (lambda: plan.pieces, passes.revise):
            for piece, tensors in reader.read(pieces(), "merging"):
                writer.write(piece, _out(plan, piece.name, passes.merge(piece, tensors), tensors[0]))


def share_of_threads() -> int:
    """Threads for arithmetic beside reading, hashing and writing: idle ones that spin would take their time."""
    return max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // 2))


class _Reader:
    """Pieces on the device, the models' in the type of the arithmetic; remembers the one at hand."""

    def __init__(self, plan: Plan, device: torch.device, progress: Progress) -> None:
        self.plan, self.device, self.progress = plan, device, progress
        self.piece: Piece | None = None
        self._buffers = Buffers(plan.slot_bytes, plan.large_bytes)

    def read(self, pieces: Iterable[Piece], label: str) -> Iterator[tuple[Piece, list[Tensor]]]:
        pieces = list(pieces)
        if not pieces:
            return
        inputs, models = self.plan.inputs, len(self.plan.sources)
        total = sum(loaded_bytes(inputs, piece) for piece in pieces)
        with self.progress.stage(f"{label}, MB", total // 10**6) as stage:
            for piece, tensors in read_ahead(inputs, pieces, self._buffers):
                self.piece = piece
                dtype = work_dtype(self.plan, piece.name)
                brought = [t.to(device=self.device, dtype=dtype) for t in tensors[:models]]
                yield piece, brought + [t.to(self.device) for t in tensors[models:]]
                stage.advance(loaded_bytes(inputs, piece) / 10**6)


class _explaining:
    """Says how many values of a tensor are not finite, and where, when a piece of it was refused."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, CheckpointError) and self._reader.piece is not None:
            check_finite(self._reader.plan.sources, self._reader.piece.name)


def check_finite(sources: list[Source], name: str) -> None:
    """Refuse a tensor that holds NaN or Inf in one of the models, naming their number and the first index."""
    entry = sources[0].entries[name]
    for t, source in enumerate(sources):
        bad, first = 0, -1
        for piece in cut_tensor(name, entry.shape, "element", _COPY_BYTES):
            flat = read_piece(source, piece).reshape(-1)
            where = (~torch.isfinite(flat)).nonzero().reshape(-1)
            if len(where) and first < 0:
                first = piece.begin + int(where[0])
            bad += len(where)
        if bad:
            label = "base" if t == 0 else f"finetuned[{t - 1}]"
            index = [int(i) for i in torch.unravel_index(torch.tensor(first), entry.shape)] if entry.shape else []
            raise CheckpointError(
                f"{name}: every value must be finite, got {bad} NaN or Inf in {label}, the first at {index}"
            )


def _out(plan: Plan, name: str, merged: Tensor, base: Tensor) -> Tensor:
    """The merged piece in the output's type, in memory of its own on the CPU."""
    dtype = TORCH_DTYPES[plan.entries[name].dtype]
    out = merged.to(device="cpu", dtype=dtype).contiguous()
    return out.clone() if out.data_ptr() == base.data_ptr() and out.numel() else out


def _check_copy(copy: Copy) -> None:
    size = copy.source.entries[copy.name].nbytes
    for begin in range(0, size, _COPY_BYTES):
        one, other = (bytearray(min(_COPY_BYTES, size - begin)) for _ in range(2))
        copy.source.read(copy.name, begin, memoryview(one))
        copy.source.read(copy.own, begin, memoryview(other))
        if one != other:
            raise contradiction(copy.name, copy.own, copy.label)


def _copy(plan: Plan, name: str, files: ShardWriter) -> None:
    """Write the base's bytes of a tensor, once they are known to be those of every model."""
    base, *finetuned = plan.sources
    size = plan.entries[name].nbytes
    buffer, other = bytearray(min(size, _COPY_BYTES)), bytearray(min(size, _COPY_BYTES))
    for begin in range(0, size, _COPY_BYTES):
        part = memoryview(buffer)[: min(_COPY_BYTES, size - begin)]
        base.read(name, begin, part)
        for t, source in enumerate(finetuned):
            theirs = memoryview(other)[: len(part)]
            source.read(name, begin, theirs)
            if part != theirs:
                kind = TORCH_DTYPES[plan.entries[name].dtype]
                text = f"{name}: {kind} tensors are copied and must equal base, finetuned[{t}] differs"
                raise CheckpointError(text)
        files.write(name, begin, part)
