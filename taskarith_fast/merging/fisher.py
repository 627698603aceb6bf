"""Fisher merging: average every weight by how much each task needs it (Matena & Raffel 2022, eq. 4).

    theta = sum_t c_t F_t theta_t / sum_t c_t F_t                                           (elementwise)

F_t is the diagonal of task t's Fisher information at theta_t. The papers' codes differ in what they do about tiny
entries: the authors raise F to a floor where it is below, MergeLM adds one everywhere; `floor_rule` names the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskarith_fast.checkpoint.sources import Source
from taskarith_fast.errors import CheckpointError, check_choice
from taskarith_fast.merging.common import State, check_compatible, copied, in_order_of, per_task
from taskarith_fast.merging.pieces import ALIGN, cut_tensor
from taskarith_fast.merging.pipeline import read_piece
from taskarith_fast.merging.statistics import Statistics
from taskarith_fast.merging.streaming import FunctionPasses, Read, Streaming
from taskarith_fast.ops import fisher_merge, weighted_sum

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

FISHERS = Statistics(
    "fishers",
    "ta.fisher_diagonal",
    lambda shape: shape,
    required=lambda parameters: parameters["missing"] == "error",
    passes=lambda parameters: 1 + (parameters["normalize"] is True),
)


def fisher(
    base: State,
    finetuned: Sequence[State],
    *,
    fishers: Sequence[State] = (),
    weights: Sequence[float] | None = None,
    normalize: bool | Sequence[float] = False,
    floor: float = 1e-6,
    floor_rule: str = "max",
    missing: str = "error",
) -> dict[str, Tensor]:
    """Average the models, each weight of each task by its diagonal Fisher information.

    Args:
        base: The pre-trained model; it gives the keys and the buffers.
        finetuned: T fine-tuned models theta_t.
        fishers: T mappings name -> F_t, shaped as the tensor, not negative. All have the same names.
        weights: c_t, T numbers that are not negative and not all 0; None means 1/T each.
        normalize: Divide c_t by the norm of F_t over all its tensors; or T such norms, if they are known.
        floor: Least Fisher information. With 0 an entry is decided by the tasks that need it alone.
        floor_rule: "max": F_t = max(F_t, floor), as the paper's code; "add": F_t = F_t + floor, as MergeLM.
        missing: What becomes of a floating tensor without Fisher information, such as a running mean: "error", or
            "average", the mean weighted by c_t.

    Returns:
        The merged state, in the key order of `base`, from float64 sums rounded once. Where F_t is 0 for all tasks, or
        for all of weight, the mean weighted by c_t.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If models or Fishers do not fit together, or a Fisher is negative or not finite.
    """
    keys = check_compatible(base, finetuned)
    tasks = len(finetuned)
    c = per_task("weights", 1.0 if weights is None else weights, tasks)
    check_choice("missing", missing, ("error", "average"))
    known = FISHERS.check({k: base[k] for k in keys}, fishers, tasks, {"missing": missing})
    models = [[m[k].detach() for k in known] for m in finetuned]
    values = [[_checked(f[k], k, t).to(base[k].device) for k in known] for t, f in enumerate(fishers)]
    merged = copied(base, keys)
    with torch.no_grad():
        norms = _norms(normalize, fishers)
        merges = fisher_merge(models, values, c, norms=norms, floor=floor, floor_rule=floor_rule)
        merged.update(zip(known, merges, strict=True))
        rest = sorted(set(keys) - set(known))
        shares = [value / math.fsum(c) for value in c]
        means = weighted_sum([base[k] for k in rest], [[m[k] for k in rest] for m in finetuned], shares)
        merged.update(zip(rest, means, strict=True))
    return in_order_of(base, merged)


class FisherPasses(FunctionPasses):
    """Fisher merging of files: norms, if asked for, take one more pass over the Fishers."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(fisher, plan)

    def survey(self, read: Read) -> None:
        if self._parameters["normalize"] is True:
            norms = [_norm(_read_all(source, t), t) for t, source in enumerate(self._plan.statistics)]
            self._parameters = {**self._parameters, "normalize": norms}


FISHER_STREAMING = Streaming("element", statistics=FISHERS, start=FisherPasses)


def _read_all(source: Source, task: int) -> Iterator[Tensor]:
    for name in sorted(source.entries):
        for piece in cut_tensor(name, source.entries[name].shape, "element", 64 * ALIGN):
            yield _checked(read_piece(source, piece), name, task)


def _norms(normalize: bool | Sequence[float], fishers: Sequence[State]) -> list[float] | None:
    """What to divide the weight of each task by."""
    if normalize is True:
        return [_norm((_checked(f[n], n, t) for n in sorted(f)), t) for t, f in enumerate(fishers)]
    return None if normalize is False else per_task("normalize", normalize, len(fishers))


def _norm(tensors: Iterable[Tensor], task: int) -> float:
    """The norm of one task's Fisher; its blocks' sums are added exactly, so no cut of a tensor changes a digit."""
    squares = [float(block.double().square().sum()) for tensor in tensors for block in tensor.reshape(-1).split(ALIGN)]
    if not any(squares):
        raise CheckpointError(f"fishers[{task}] is 0 everywhere, normalize cannot divide by its norm")
    return math.sqrt(math.fsum(squares))


def _checked(values: Tensor, name: str, task: int) -> Tensor:
    """One Fisher, of a storage type; CheckpointError if it is negative or not finite."""
    if values.numel():
        low, high = (float(x) for x in values.detach().aminmax())  # NaN passes through both
        if not (low >= 0 and high < math.inf):
            got = low if low < 0 else high
            raise CheckpointError(f"{name}: fishers[{task}] must be finite and not negative, got {got}")
    return values.detach().float() if values.dtype == torch.float64 else values.detach()
