import torch

from taskarith_fast.ops.selected_square_sums import OP
from taskarith_fast.ops.selection import Selection
from tests.ops.cases import OpCase, generator, task_lists


def _sample(shapes, density, compact=False, spread=1e-2):
    def make(dtype):
        tensors, _ = task_lists(shapes, 0, dtype)
        masks = [torch.rand(x.shape, generator=generator(3)) < density for x in tensors]
        selections = [Selection.of(m) for m in masks]
        chosen = [x[m] for x, m in zip(tensors, masks, strict=True)] if compact else tensors
        return chosen, [s.items for s in selections], [s.offsets for s in selections], [s.numel for s in selections]

    return make


def _selected(items, offsets, numel):
    """The selected entries, read item by item as the format is documented."""
    if not len(offsets):
        return range(numel)
    out = []
    for b in range(len(offsets) - 1):
        inside = (items[offsets[b, 1] : offsets[b + 1, 1]].long() & 0xFFFF).tolist()
        if items.dim() == 1:
            inside = [[first, i] for i, first in enumerate(inside)]
        ends = [before for _, before in inside[1:]] + [int(offsets[b + 1, 0] - offsets[b, 0])]
        for (first, before), end in zip(inside, ends[: len(inside)], strict=True):
            out += range(b * 65536 + first, b * 65536 + first + end - before)
        assert len(out) == offsets[b + 1, 0]
    return out


def _truth(tensors, items, offsets, numels):
    sums = []
    for x, item, offset, numel in zip(tensors, items, offsets, numels, strict=True):
        chosen = x.double().flatten()
        if len(chosen) == numel:
            chosen = chosen[list(_selected(item, offset, numel))]
        sums.append(chosen.square().sum())
    return [torch.stack(sums)] if sums else [torch.zeros(0, dtype=torch.float64)]


def _compare(args, out, eager, truth):
    torch.testing.assert_close(out[0], truth[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(eager[0], truth[0], rtol=1e-13, atol=0)


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample([(33, 31), (7,), (1, 4097), (5, 2, 3), ()], 0.4),
        "every entry": _sample([(33, 31), (70_001,)], 2.0),
        "no entry": _sample([(33, 31), (70_001,)], -1.0),
        "long runs": _sample([(70_001,), (65_536,)], 0.99),
        "compact": _sample([(33, 31), (70_001,)], 0.1, compact=True),
        "no tensor": _sample([], 0),
        "empty tensor": _sample([(0,), (3,)], 0.5),
        "more than a block": _sample([(140_001,), (2,)], 0.01),
    },
    truth=_truth,
    compare=_compare,
)
