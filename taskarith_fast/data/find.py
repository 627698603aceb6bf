"""Find a task by the words a user types."""

from __future__ import annotations

from pathlib import Path

from taskarith_fast.data.folder import load_folder
from taskarith_fast.data.npz import load_npz
from taskarith_fast.data.pack import load_tasks
from taskarith_fast.data.task import Task
from taskarith_fast.data.torchvision_tasks import load_torchvision


def find_task(words: str) -> Task:
    """Open the task that `words` name.

    Args:
        words: A task of the shipped pack ("fashion"), an image folder or ``.npz`` file ("data/pets"), or one of the
            eight paper datasets with the folder that holds it ("DTD@data").

    Raises:
        DataError: If there is no such task, or it is damaged.
    """
    name, at, root = words.rpartition("@")
    if at:
        return load_torchvision(name, root)
    path = Path(words)
    if path.suffix == ".npz":
        return load_npz(path)
    if path.is_dir():
        return load_folder(path)
    return load_tasks([words])[words]
