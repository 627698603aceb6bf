"""Tasks: labelled images in train, val and test splits, and batches of them."""

from taskarith_fast.data.batches import batches
from taskarith_fast.data.npz import load_npz, save_npz
from taskarith_fast.data.pack import load_tasks
from taskarith_fast.data.task import ArraySplit, DecodedSplit, Split, SubsetSplit, Task, validation_split

__all__ = [
    "ArraySplit",
    "DecodedSplit",
    "Split",
    "SubsetSplit",
    "Task",
    "batches",
    "load_npz",
    "load_tasks",
    "save_npz",
    "validation_split",
]
