"""AdaMerging from files to a file, as the command line runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskarith_fast import __version__, data
from taskarith_fast.checkpoint import check_destination, load_state_dict, save_state_dict
from taskarith_fast.checkpoint.sources import open_source
from taskarith_fast.inputs import Inputs
from taskarith_fast.loops.adamerge import AdaMergeResult, adamerge
from taskarith_fast.loops.evaluate import batches_of
from taskarith_fast.loops.files import EncoderChoice, read_head
from taskarith_fast.loops.runtime import resolve_device, threads
from taskarith_fast.merging.hashing import Hashes
from taskarith_fast.merging.methods import LEARNED, find_method
from taskarith_fast.progress import Progress


@dataclass
class ShuffledBatches:
    """A split as a loader: each iteration is a new epoch in a new order, which depends on the seed alone."""

    encoder: nn.Module
    """Says how the images are prepared."""
    split: data.Split
    """The images."""
    batch_size: int
    """Images a batch; a last, smaller batch is not dropped."""
    seed: int
    """Seed of the order."""
    _epoch: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        order: dict[str, Any] = {"shuffle": True, "seed": self.seed, "epoch": epoch}
        return batches_of(self.encoder, self.split, batch_size=self.batch_size, image_size=None, **order)


def adamerge_files(
    choice: EncoderChoice, base: Path, finetuned: Sequence[Path], pairs: Sequence[tuple[data.Task, Path]],
    output: Path, *, method: str, split: str, batch_size: int, settings: Mapping[str, Any], device: str,
    num_threads: int | None, overwrite: bool, progress: Progress,
) -> AdaMergeResult:  # fmt: skip
    """Merge encoder files with coefficients learned on the images of a split, without its labels.

    Args:
        choice: The encoder that the files are states of.
        base, finetuned: Checkpoints: the pre-trained one, and T fine-tuned ones in the order of `pairs`.
        pairs: T tasks and the files of their heads.
        output: Destination, ``.safetensors``; its metadata holds what was done, and every coefficient.
        method, settings: As for `adamerge`.
        split: "train", "val" or "test".
        batch_size: Images a batch.
        device, num_threads, overwrite, progress: As for the other verbs.

    Raises:
        ArgumentError, CheckpointError, DivergedError: As `adamerge`.
    """
    find_method(method, settings, LEARNED).function(**settings)
    check_destination(output, overwrite)
    where = resolve_device(device)
    heads = {task.name: read_head(path, task).to(where) for task, path in pairs}
    encoder = choice.load().to(where)
    seed = settings.get("seed", 0)
    loaders = {task.name: ShuffledBatches(encoder, task.splits[split], batch_size, seed) for task, _ in pairs}
    paths = [base, *finetuned]
    with threads(num_threads), Hashes([open_source(path) for path in paths]) as hashes:
        states = [load_state_dict(path) for path in paths]
        result = adamerge(
            encoder, states[0], states[1:], heads, loaders, method=method, progress=progress, **settings
        )  # fmt: skip
        hashes.wait()
    inputs = [{"name": path.name, "sha256": h} for path, h in zip(paths, hashes.found, strict=True)]
    record = {
        "schema": 1,
        "kind": "encoder",
        "tool": f"taskarith_fast {__version__}",
        "method": method,
        "parameters": asdict(result.settings),
        "base": inputs[0],
        "finetuned": inputs[1:],
        "encoder": asdict(choice),
        "images": {"split": split, "batch_size": batch_size, "tasks": list(result.tasks)},
        "names": list(result.names),
        "coefficients": result.coefficients.tolist(),
    }
    save_state_dict(result.state, output, metadata={"taskarith": json.dumps(record)}, overwrite=overwrite)
    return result
