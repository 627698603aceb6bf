import torch

from taskarith_fast.ops.dare import OP, stream
from tests.ops.cases import OpCase, generator, task_lists

SHAPES = [(7, 13), (1,), (513,), (2, 3, 5)]


def _sample(shapes, tasks, density=0.3, begins=None):
    def make(dtype):
        base, finetuned = task_lists(shapes, tasks, dtype)
        weights = torch.rand(tasks, len(base), dtype=torch.float64, generator=generator(2)) / density
        streams = torch.tensor([[stream(3, t, f"name {i}") for i in range(len(base))] for t in range(tasks)])
        streams = streams.reshape(tasks, len(base)).long()
        firsts = torch.tensor(begins or [0] * len(base), dtype=torch.int64)
        return base, finetuned, weights, streams, max(1, round(density * 2**32)), firsts

    return make


def _strided(dtype):
    base, finetuned, *rest = _sample([(6, 10)], 2)(dtype)
    return [b.t() for b in base], [f.t() for f in finetuned], *rest


def _word(x, key):
    """Philox 4x32-10 of four 32-bit words in Python's integers, round by round from the paper."""
    k = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [q >> 32 ^ x[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ x[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def kept_by_the_book(numel, key, threshold, begin=0):
    """The mask, element by element, as the operator's documentation words it."""
    kept = []
    for e in range(begin, begin + numel):
        c, h, u = 8 * (e // 64) + e % 32 // 4, 4 * (e // 32 % 2) + e % 4, 0
        for level in (0, 1):
            half_words = [w >> s & 0xFFFF for w in _word([c & 0xFFFFFFFF, c >> 32, level, 0], key) for s in (0, 16)]
            u = u << 16 | half_words[h]
        kept.append(u < threshold)
    return torch.tensor(kept, dtype=torch.bool)


def _truth(base, finetuned, weights, streams, threshold, begins):
    out = []
    for i, b in enumerate(base):
        total = b.double()
        for t in range(len(weights)):
            kept = kept_by_the_book(b.numel(), int(streams[t, i]), threshold, int(begins[i])).reshape(b.shape)
            total = total + kept * weights[t, i] * (finetuned[t * len(base) + i].double() - b.double())
        out.append(total)
    return out


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3),
        "sparse": _sample([(129, 33)], 2, density=0.1),
        "nine tasks": _sample([(65,)], 9),
        "keep all": _sample([(200,)], 2, density=1.0),
        "keep hardly any": _sample([(200,)], 2, density=1e-12),
        "one task": _sample(SHAPES, 1),
        "no task": _sample(SHAPES, 0),
        "empty tensors": _sample([(0,), (3, 0), (5,)], 2),
        "no dimension": _sample([()], 2),
        "more than a block": _sample([(17000,), (3,)], 1),
        "pieces": _sample([(300,), (64,), (5, 3)], 2, begins=[16384, 64, 2**33 + 192]),
        "not contiguous": _strided,
    },
    truth=_truth,
)
