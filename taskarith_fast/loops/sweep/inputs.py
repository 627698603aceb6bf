"""What a sweep reads: tasks, encoder, checkpoints. All is checked from headers and hashed before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from taskarith_fast import data
from taskarith_fast.checkpoint import load_state_dict, save_state_dict
from taskarith_fast.checkpoint.sources import FileSource, Source, open_source
from taskarith_fast.data.fingerprint import fingerprint
from taskarith_fast.data.task import SPLITS
from taskarith_fast.errors import CheckpointError, DataError
from taskarith_fast.loops.files import EncoderChoice, read_head
from taskarith_fast.loops.sweep.file import SweepFile
from taskarith_fast.merging.hashing import Hashes
from taskarith_fast.models.packages import digest

_IMAGES = 256  # that a fingerprint reads of a split


class Inputs:
    """Everything that the sweep file names, found and checked.

    Args:
        file: The sweep file.
        root: Its directory.

    Raises:
        ArgumentError, BackendError, CheckpointError, DataError: If the encoder, a task or a checkpoint is not there,
            is damaged, or does not fit the others.
    """

    def __init__(self, file: SweepFile, root: Path) -> None:
        self.file, self.root = file, root
        self.choice = EncoderChoice(file.encoder.name, file.encoder.image_size, file.encoder.depth)
        self.tasks: dict[str, data.Task] = {}
        self.words: dict[str, str] = {}
        for table in file.tasks:
            words = self._words(table.name)
            task = data.find_task(words)
            if task.name in self.tasks:
                raise DataError(f"tasks must have different names, got {task.name!r} of {table.name!r} twice")
            self.tasks[task.name], self.words[task.name] = task, words
        encoder = self.choice.load()
        self.image_size = getattr(encoder, "image_size", None)
        self.own: dict[str, Tensor] = {name: t.detach() for name, t in encoder.state_dict().items()}
        self.heads = {
            name: None if table.head is None else self._head(root / table.head, task)
            for table, (name, task) in zip(file.tasks, self.tasks.items(), strict=True)
        }
        self.base = None if file.base is None else self._open(root / file.base)
        self.finetuned = {
            seed: [self._open(root / (table.finetuned or "").replace("{seed}", str(seed))) for table in file.tasks]
            for seed in self._file_seeds
        }  # fmt: skip
        self.hashes = self._hash()

    @property
    def _file_seeds(self) -> list[int | None]:
        """Seeds that name different checkpoints; None where none does, nothing where models are trained."""
        words = [table.finetuned or "" for table in self.file.tasks]
        if self.file.train:
            return []
        return list(self.file.seeds) if any("{seed}" in word for word in words) else [None]

    @cached_property
    def weights(self) -> str:
        """What the pre-trained weights are."""
        return self.hashes[self.base.path] if self.base else digest({n: t.cpu() for n, t in self.own.items()})

    @cached_property
    def model_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.own.values())

    def count(self, task: str, split: str | None = None) -> int:
        """Images of a task that are judged, or of a split of it."""
        if split is not None:
            return len(self.tasks[task].splits[split])
        images = len(self.tasks[task].splits[self.file.split])
        return min(images, self.file.images) if self.file.images else images

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Task -> split -> fingerprint of at most 256 of its images, its size and its classes."""
        return {
            name: {split: fingerprint(task, [split], most=_IMAGES) for split in SPLITS}
            for name, task in self.tasks.items()
        }

    def places(self, shared: Path) -> tuple[Path, dict[Path, Path]]:
        """The safetensors file of the pre-trained state, and of each checkpoint; some are yet to be written."""
        places = {
            s.path: s.path if isinstance(s, FileSource) else shared / f"{self.hashes[s.path][:16]}.safetensors"
            for s in self._sources()
        }
        base = places[self.base.path] if self.base else shared / f"base-{self.weights[:16]}.safetensors"
        return base, places

    def write_shared(self, shared: Path) -> None:
        """Write what is no safetensors file yet, so that workers can map it."""
        shared.mkdir(parents=True, exist_ok=True)
        base, places = self.places(shared)
        for path, place in places.items():
            if not place.exists():
                save_state_dict(load_state_dict(path), place)
        if not base.exists():
            save_state_dict({name: t.contiguous() for name, t in self.own.items()}, base)

    def _words(self, name: str) -> str:
        """The words for `find_task`, paths taken from the sweep file's directory."""
        task, at, folder = name.rpartition("@")
        if at:
            return f"{task}@{self.root / folder}"
        return str(self.root / name) if "/" in name or name.endswith(".npz") or (self.root / name).is_dir() else name

    def _open(self, path: Path) -> Source:
        source = open_source(path)
        own = {name: tuple(t.shape) for name, t in self.own.items()}
        found = {name: entry.shape for name, entry in source.entries.items()}
        for name in [*own, *found]:
            if name not in found or name not in own:
                side = "lacks it" if name in own else "has it too many"
                raise CheckpointError(f"{path}: {name}: expected the {len(own)} tensors of the encoder, but it {side}")
            if own[name] != found[name]:
                raise CheckpointError(
                    f"{path}: {name} must have shape {list(own[name])} as in the encoder, got {list(found[name])}"
                )
        return source

    def _head(self, path: Path, task: data.Task) -> Source:
        read_head(path, task)
        return open_source(path)

    def _sources(self) -> Sequence[Source]:
        tuned = [source for sources in self.finetuned.values() for source in sources]
        return [*tuned, *([self.base] if self.base else [])]

    def _hash(self) -> Mapping[Path, str]:
        heads = [source for source in self.heads.values() if source is not None]
        sources = list({source.path: source for source in [*heads, *self._sources()]}.values())
        with Hashes(sources) as hashes:
            hashes.wait()
            return {source.path: str(found) for source, found in zip(sources, hashes.found, strict=True)}
