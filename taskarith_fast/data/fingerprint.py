"""What a task's data are, as a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from taskarith_fast.data.task import SPLITS, Task

_BATCH = 256


def fingerprint(task: Task, splits: Sequence[str] = SPLITS, *, most: int | None = None) -> str:
    """SHA-256 of images or texts and labels, in order, and of the class names.

    Args:
        task: The task.
        splits: Which of its splits count.
        most: Read at most so many images of a split, evenly spaced, and its size; None reads all.
    """
    sha = hashlib.sha256(repr(task.classes).encode())
    for name in splits:
        split = task.splits[name]
        indices: Sequence[int] = range(len(split))
        if most is not None and len(split) > most:
            sha.update(f"{name} {len(split)}".encode())
            indices = [i * len(split) // most for i in range(most)]
        for start in range(0, len(indices), _BATCH):
            images, labels = split.get(indices[start : start + _BATCH])
            for part in (images, labels):
                is_texts = isinstance(part, list)
                sha.update(f"{name} {part if is_texts else list(part.shape)}".encode())
                if not is_texts:
                    sha.update(part.contiguous().numpy().tobytes())
    return sha.hexdigest()
