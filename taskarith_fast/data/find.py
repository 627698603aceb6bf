"""Find a task by the words a user types."""

from __future__ import annotations

from pathlib import Path

from taskarith_fast.data.folder import load_folder
from taskarith_fast.data.npz import load_npz
from taskarith_fast.data.pack import load_tasks, shipped_tasks
from taskarith_fast.data.task import Task
from taskarith_fast.data.text import load_tsv
from taskarith_fast.data.text_datasets import TEXT_DATASETS, load_text_dataset
from taskarith_fast.data.torchvision_tasks import load_torchvision
from taskarith_fast.errors import ArgumentError


def find_task(words: str) -> Task:
    """Open the task that `words` name.

    Args:
        words: A task of the shipped packs ("fashion", "nouns"), an image folder or ``.npz`` file ("data/pets"), a
            ``.tsv`` file of texts, or one of the papers' datasets with the folder that holds it ("DTD@data"), of
            texts with the number of a template too ("rte:1@data/rte").

    Raises:
        ArgumentError: If no shipped task has this name, or a dataset no such template.
        DataError: If there is no such task, or it is damaged.
    """
    name, at, root = words.rpartition("@")
    if at:
        name, colon, template = name.partition(":")
        if name.lower() not in TEXT_DATASETS:
            return load_torchvision(name + colon + template, root)
        if colon and not template.isdecimal():
            raise ArgumentError(f"template must be a number, as in {name}:0@{root}, got {template!r}")
        return load_text_dataset(name, root, template=int(template or 0))
    path = Path(words)
    if path.suffix == ".npz":
        return load_npz(path)
    if path.suffix == ".tsv":
        return load_tsv(path)
    if path.is_dir():
        return load_folder(path)
    roots = shipped_tasks()
    if words not in roots:
        raise ArgumentError(f"task must be a folder, a file or among {', '.join(roots)}, got {words!r}")
    return load_tasks([words], roots[words])[words]
