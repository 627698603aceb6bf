"""Tasks: labelled images in train, val and test splits, and batches of them."""

from taskarith_fast.data.batches import batches
from taskarith_fast.data.find import find_task
from taskarith_fast.data.folder import load_folder
from taskarith_fast.data.npz import load_npz, save_npz
from taskarith_fast.data.pack import load_tasks
from taskarith_fast.data.prompts import Prompts, load_prompts
from taskarith_fast.data.task import ArraySplit, DecodedSplit, Split, SubsetSplit, Task, validation_split
from taskarith_fast.data.torchvision_tasks import load_torchvision

__all__ = [
    "ArraySplit",
    "DecodedSplit",
    "Prompts",
    "Split",
    "SubsetSplit",
    "Task",
    "batches",
    "find_task",
    "load_folder",
    "load_npz",
    "load_prompts",
    "load_tasks",
    "load_torchvision",
    "save_npz",
    "validation_split",
]
