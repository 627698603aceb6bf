import torch

from taskarith_fast.ops.unpack_bits import OP
from tests.ops.case_pack_bits import equal, packed, random_masks
from tests.ops.cases import OpCase, generator


def _sample(shapes, density=0.4):
    def make(dtype):
        masks = random_masks(shapes, density)
        return packed(masks), [m.numel() for m in masks]

    return make


def _strided(dtype):
    return [torch.randint(0, 256, (7, 3), dtype=torch.uint8, generator=generator())[:, 1]], [53]


def _truth(bits, numels):
    return [
        torch.tensor([bool(int(b[j // 8]) >> (j % 8) & 1) for j in range(n)], dtype=torch.bool)
        for b, n in zip(bits, numels, strict=True)
    ]


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample([(7, 13), (1,), (8,), (513,), (2, 3, 5)]),
        "empty": _sample([(0,), (3, 0)]),
        "all": _sample([(77,)], 2.0),
        "none": _sample([(77,)], -1.0),
        "more than a block": _sample([(140001,), (3,)]),
        "every byte": lambda dtype: ([torch.arange(256, dtype=torch.uint8)], [2048]),
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=equal,
    dtypes=(torch.float32,),
)
