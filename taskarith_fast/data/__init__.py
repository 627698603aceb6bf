"""Tasks: labelled images or texts in train, val and test splits, and batches of them."""

from taskarith_fast.data.batches import batches
from taskarith_fast.data.find import find_task
from taskarith_fast.data.folder import load_folder
from taskarith_fast.data.npz import load_npz, save_npz
from taskarith_fast.data.pack import load_tasks, load_text_tasks
from taskarith_fast.data.prompts import Prompts, load_prompts
from taskarith_fast.data.task import ArraySplit, DecodedSplit, Split, SubsetSplit, Task, validation_split
from taskarith_fast.data.templates import TEMPLATES, Template
from taskarith_fast.data.text import Example, TextSplit, load_tsv
from taskarith_fast.data.text_batches import check_texts, text_batches
from taskarith_fast.data.text_datasets import load_text_dataset
from taskarith_fast.data.torchvision_tasks import load_torchvision

__all__ = [
    "TEMPLATES",
    "ArraySplit",
    "DecodedSplit",
    "Example",
    "Prompts",
    "Split",
    "SubsetSplit",
    "Task",
    "Template",
    "TextSplit",
    "batches",
    "check_texts",
    "find_task",
    "load_folder",
    "load_npz",
    "load_prompts",
    "load_tasks",
    "load_text_dataset",
    "load_text_tasks",
    "load_torchvision",
    "load_tsv",
    "save_npz",
    "text_batches",
    "validation_split",
]
