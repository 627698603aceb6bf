"""A plan in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskarith_fast.checkpoint.sources import TORCH_DTYPES
from taskarith_fast.merging.checks import format_size
from taskarith_fast.merging.plan_memory import work_dtype

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan


def plan_lines(plan: Plan) -> list[str]:
    """The plan in words, a line each."""
    if plan.problems:
        return [f"problem: {problem}" for problem in plan.problems]
    files = len(plan.shards)
    return [
        f"method: {plan.method} " + ", ".join(f"{k}={v}" for k, v in plan.parameters.items()),
        f"tensors: {len(plan.merged)} merged, {len(plan.copied)} copied, in {files} file{'s' if files > 1 else ''}",
        f"reads: {format_size(plan.read_bytes)} in {plan.passes} pass{'es' if plan.passes > 1 else ''}; "
        f"hashes {format_size(plan.hash_bytes)}; writes {format_size(plan.write_bytes)}",
        f"memory: {format_size(plan.peak_bytes)} at the peak, {format_size(plan.buffer_bytes)} of it buffers",
        f"time: about {plan.seconds:.1f} s",
        *(f"note: {note}" for note in plan.notes),
    ]


def describe(plan: Plan) -> None:
    """Note what a reader of the plan should know."""
    for source in plan.inputs:
        if source.resident:
            plan.notes.append(f"{source.path.name} is no safetensors file: its tensors are held in memory")
    plan.notes += [f"tied, written once: {name} is {own}" for name, own in plan.tied.items()]
    plan.notes += [f"{c.label} holds {c.name} apart from {c.own}: they must be equal" for c in plan.copies]
    if any(work_dtype(plan, n) != TORCH_DTYPES[plan.entries[n].dtype] for n in plan.merged) or any(
        len({s.entries[n].dtype for s in plan.sources}) > 1 for n in plan.merged
    ):
        plan.notes.append("dtypes differ: the arithmetic runs in float32 and is rounded to the output's dtype")
    if plan.statistics:
        rest = [name for name in plan.merged if name not in plan.statistics[0].entries]
        plan.notes += [f"averaged, as they have no {plan.statistics_name}: {', '.join(rest)}"] if rest else []
    if plan.copied:
        plan.notes.append(f"copied from base, and checked to be equal in all models: {', '.join(plan.copied)}")
