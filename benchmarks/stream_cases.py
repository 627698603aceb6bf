"""Merges of files: time against reading the inputs and against the same merge in memory."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.contest import Contest


def merge_files(method: str, tasks: int) -> Contest:
    """ViT-B/32 x `tasks`, files to file on one disk, page cache warm."""
    from safetensors.torch import load_file, save_file

    import taskarith_fast as ta

    models = _write_models(tasks)
    output = models[0].parent / "out.safetensors"

    def streamed(hash_inputs: bool) -> Any:
        return lambda: ta.merge_files(
            models[0], models[1:], output, method=method, overwrite=True, hash_inputs=hash_inputs
        )

    def in_memory() -> None:
        states = [load_file(path) for path in models]
        save_file(ta.merge(states[0], states[1:], method), output)

    return Contest(
        ours={"streamed": streamed(False), "streamed, inputs hashed": streamed(True)},
        baselines={
            "cat of the inputs": lambda: subprocess.run(
                f"cat {models[0].parent}/m*.safetensors > /dev/null", shell=True
            ),
            "load, merge in memory, save": in_memory,
        },
        bytes_moved=sum(path.stat().st_size for path in models) + models[0].stat().st_size,
    )


def _write_models(tasks: int) -> list[Path]:
    """A base and eight models; more tasks repeat them. They are deleted when the process ends."""
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(prefix="taskarith-stream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base, finetuned = shapes.models(shapes.vit_b32_shapes(), min(tasks, 8))
    paths = []
    for i, tensors in enumerate((base, *finetuned)):
        paths.append(folder / f"m{i}.safetensors")
        save_file({f"t{j:03d}": tensor.contiguous() for j, tensor in enumerate(tensors)}, paths[-1])
    return [paths[0], *(paths[1 + t % 8] for t in range(tasks))]
