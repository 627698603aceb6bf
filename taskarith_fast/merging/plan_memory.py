"""How a merge of files is cut into pieces, and the memory that takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from taskarith_fast.checkpoint.sources import TORCH_DTYPES
from taskarith_fast.merging.methods import Method
from taskarith_fast.merging.pieces import cut_tensor
from taskarith_fast.merging.pipeline import loaded_bytes
from taskarith_fast.merging.ties_threshold import count_dtype

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

_MOST_COUNTS = 1 << 20  # bins of a histogram
_SOLVER_BYTES = 40  # five float64 copies of a matrix, and of its Gram matrix


def work_dtype(plan: Plan, name: str) -> torch.dtype:
    """Type of the arithmetic on a tensor: the models' own where all agree with the output, else float32."""
    kinds = {source.entries[name].dtype for source in plan.sources} | {plan.entries[name].dtype}
    return TORCH_DTYPES[kinds.pop()] if len(kinds) == 1 else torch.float32


def cut_plan(plan: Plan, row: Method, budget: int) -> None:
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
        copies = (4 * models if mixed else 0) + (work.itemsize * plan.tasks if row.streaming.copies else 0)
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
    plan.buffer_bytes = 2 * plan.slot_bytes + plan.large_bytes + extra + counter * (plan.bins + 1) * plan.tasks + held


def resident_memory() -> int:
    """Bytes of memory that this process takes now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 300 << 20
