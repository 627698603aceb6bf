r"""Add task deltas of which most entries are dropped at random, the rest rescaled (DARE, Yu 2024, section 3).

``out[i] = base[i] + sum_t w[t, i] m[t, i] (finetuned[t, i] - base[i])`` with independent ``m ~
Bernoulli(density)``; a weight of ``scale / density`` keeps the expectation. The deltas and the masks exist in
registers only: T + 1 reads and one write of every element. Sums run over the tasks in order in float64 and
are rounded once to the storage type.

The random numbers are counter-based, Philox 4x32-10 with one 64-bit key a task and tensor (`stream`: a hash
of seed, task and tensor *name*) and the element's index as the counter, so what is dropped depends neither on
threads, blocks and shards nor on which other tensors there are or in what order. Element e is kept if ``u(e)
< threshold``, with ``u(e) = 2^16 high(e) + low(e)`` of 32 bits. One block of 128 bits decides eight elements:
``high(e)`` is half-word ``4 ((e / 32) mod 2) + e mod 4`` of the block with counter ``c(e) = 8 (e / 64) + (e
mod 32) / 4``, and ``low(e)`` the same half-word of the block whose third counter word is 1; the kernel
computes the latter only where the former leaves the comparison open, for one element in 65,536.

On a GPU (CUDA C++) a thread takes four elements and the four that lie 32 further on, which one Philox block
decides: about twelve integer instructions an element and task beside its four bytes, which an H100 does in
about the time it takes to read them. GPU times are unmeasured.

Not differentiable: drawn once, the masks belong to a merge, not to a training step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_lists, task_major, weight_table

SCHEMA = "(Tensor[] base, Tensor[] finetuned, Tensor weights, Tensor streams, int threshold, Tensor begins) -> Tensor[]"

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: Tensor, level: int, key: int) -> Tensor:
    """Philox 4x32-10 (Salmon et al. 2011) of the counter words (counter mod 2^32, counter / 2^32, level, 0).

    Args:
        counter: int64, shape [n].
        level: Third counter word.
        key: 64 bits.

    Returns:
        Four words of 32 bits, shape [n, 4], int64.
    """
    x = [counter & _WORD, (counter >> 32) & _WORD, torch.full_like(counter, level), torch.zeros_like(counter)]
    for r in range(10):
        k0, k1 = ((key >> shift) + r * weyl & _WORD for shift, weyl in zip((0, 32), _WEYL, strict=True))
        p, q = x[0] * _MULTIPLIERS[0], x[2] * _MULTIPLIERS[1]  # modulo 2^64: all 64 bits are right
        x = [(q >> 32 & _WORD) ^ x[1] ^ k0, q & _WORD, (p >> 32 & _WORD) ^ x[3] ^ k1, p & _WORD]
    return torch.stack(x, dim=1)


def keep_mask(numel: int, stream: int, threshold: int, device: torch.device | None = None, begin: int = 0) -> Tensor:
    """Which of the elements from `begin` on are kept, bool [numel]: u(e) < threshold."""
    e = torch.arange(begin, begin + numel, device=device)
    counter = 8 * (e // 64) + e % 32 // 4
    half = 4 * (e // 32 % 2) + e % 4
    high, low = (
        philox(counter, level, stream).gather(1, (half // 2)[:, None])[:, 0] >> (16 * (half % 2)) & 0xFFFF
        for level in (0, 1)
    )
    return (high << 16 | low) < threshold


def dare_reference(
    base: list[Tensor], finetuned: list[Tensor], weights: Tensor, streams: Tensor, threshold: int, begins: Tensor
) -> list[Tensor]:
    """The formula in float64, tensor by tensor; `finetuned` is task-major [T * L], the tables are [T, L],
    `begins` is [L]."""
    out = []
    for i, b in enumerate(base):
        total = b.double().clone()
        for t in range(weights.shape[0]):
            kept = keep_mask(b.numel(), int(streams[t, i]), threshold, b.device, int(begins[i])).reshape(b.shape)
            delta = finetuned[t * len(base) + i].double() - b.double()
            total = total + weights[t, i] * torch.where(kept, delta, 0.0)
        out.append(total.to(b.dtype).contiguous())
    return out


def dare_fake(
    base: list[Tensor], finetuned: list[Tensor], weights: Tensor, streams: Tensor, threshold: int, begins: Tensor
) -> list[Tensor]:
    return [torch.empty_like(b, memory_format=torch.contiguous_format) for b in base]


OP = define_op("dare", SCHEMA, dare_reference, dare_fake, triton=True)


def stream(seed: int, task: int, name: str) -> int:
    """The generator's key for one task and tensor: a signed 64-bit hash (BLAKE2b) of seed, task and name."""
    digest = hashlib.blake2b(f"{seed}/{task}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def dare(
    base: Sequence[Tensor],
    finetuned: Sequence[Sequence[Tensor]],
    weights: Tensor | Sequence[float],
    streams: Sequence[Sequence[int]],
    *,
    density: float,
    begins: Sequence[int] | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """Add weighted task deltas to the base after dropping entries at random.

    Args:
        base: L tensors of any shapes, float32, bfloat16 or float16.
        finetuned: T lists of L tensors, each with the shape, dtype and device of its base tensor.
        weights: One weight a task, shape [T], or one a task and tensor, shape [T, L]; rescaling by 1 /
            density is the caller's.
        streams: Keys of the generator, T lists of L signed 64-bit numbers: ``stream(seed, task, name)``.
        density: Probability to keep an entry, in (0, 1]; used as the nearest positive multiple of 2^-32. 1
            keeps all.
        begins: For pieces of tensors: the index in its tensor of each one's first element, L multiples of 64; None
            is 0 for all.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L new contiguous tensors like `base`, within one unit in the last place of the float64 result for the
        same masks. No task gives a copy of `base`; an entry that every task drops equals it bit by bit.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together, or density or begins are out of their domain.
        BackendError: If `backend` is absent.
    """
    base, tasks = list(base), len(finetuned)
    begins = [0] * len(base) if begins is None else list(begins)
    if len(begins) != len(base) or any(begin < 0 or begin % 64 for begin in begins):
        raise ArgumentError(f"begins must be {len(base)} multiples of 64, got {begins[:4]}")
    if not 0.0 < density <= 1.0:
        raise ArgumentError(f"density must be in (0, 1], got {density}")
    if [len(row) for row in streams] != [len(base)] * tasks:
        raise ArgumentError(f"streams must be {tasks} lists of {len(base)} keys, got {[len(row) for row in streams]}")
    weights = weight_table(weights, base, tasks)
    check_lists(base, finetuned)
    if not base:
        return []
    keys = torch.tensor(streams, dtype=torch.int64).reshape(tasks, len(base)).to(base[0].device)
    threshold = max(1, round(density * 2**32))
    firsts = torch.tensor(begins, dtype=torch.int64).to(base[0].device)
    return OP(base, task_major(finetuned), weights, keys, threshold, firsts, backend=backend)
