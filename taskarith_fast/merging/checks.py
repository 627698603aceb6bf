"""What a merge of files is checked for before anything is read: outputs, sizes, and how the models differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskarith_fast.checkpoint.header import Entry
from taskarith_fast.checkpoint.sources import TORCH_DTYPES, Source
from taskarith_fast.errors import ArgumentError, CheckpointError

FLOATS = ("F32", "BF16", "F16")


def check_output(output: Path, directory: bool, overwrite: bool) -> None:
    """Refuse an output of an unknown kind, or one that exists while `overwrite` is off."""
    if not directory and output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the output must end in .safetensors, or be a directory without a suffix")
    if directory and output.suffix == ".safetensors":
        raise CheckpointError(f"{output}: an output in shards must be a directory, not a .safetensors file")
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output}: exists already; pass overwrite (--overwrite) to replace it")
    if directory and output.is_dir() and any(not _is_ours(p) for p in output.iterdir()):
        raise CheckpointError(f"{output}: is a directory that holds more than a checkpoint; it will not be replaced")
    if not directory and output.is_dir():
        raise CheckpointError(f"{output}: is a directory, expected a file to replace")


def parse_size(name: str, value: int | str) -> int:
    """Bytes, from a number or words like "256MB" or "5 GiB"; ArgumentError otherwise."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
             "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
    text = str(value).strip().upper()
    digits = text.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    try:
        size = int(float(digits) * units[text[len(digits) :].strip()])
    except (ValueError, KeyError, OverflowError):
        raise ArgumentError(f"{name} must be a number of bytes such as 1000000 or 5GB, got {value!r}") from None
    if isinstance(value, bool) or size <= 0:
        raise ArgumentError(f"{name} must be at least one byte, got {value!r}")
    return size


def format_size(count: float) -> str:
    """Bytes in words: 999 B, 1.0 kB, 87.5 MB, 1.23 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def differences(sources: Sequence[Source]) -> list[CheckpointError]:
    """Every difference of the models in keys, shapes and dtypes, and every dtype that cannot be merged."""
    base, *finetuned = (source.entries for source in sources)
    found = []
    for t, model in enumerate(finetuned):
        label = f"finetuned[{t}]"
        for kind, names in (("lacks", base.keys() - model.keys()), ("has, unlike base,", model.keys() - base.keys())):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                listed = ", ".join(sorted(names)[:3])
                found.append(f"{label} {kind} {listed}{more}; all models must have the same tensors")
        for name in sorted(base.keys() & model.keys()):
            found += _entry_differences(name, base[name], model[name], label)
    for name, entry in sorted(base.items()):
        dtype = TORCH_DTYPES[entry.dtype]
        if dtype.is_floating_point and entry.dtype not in FLOATS:
            found.append(f"{name}: dtype must be float32, bfloat16 or float16 to be merged, got {dtype}")
    return [CheckpointError(text) for text in found]


def _entry_differences(name: str, base: Entry, model: Entry, label: str) -> list[str]:
    found = []
    if model.shape != base.shape:
        found.append(f"{name}: shape must be {list(base.shape)} as in base, got {list(model.shape)} in {label}")
    if model.dtype != base.dtype and not (model.dtype in FLOATS and base.dtype in FLOATS):
        expected, got = TORCH_DTYPES[base.dtype], TORCH_DTYPES[model.dtype]
        found.append(f"{name}: dtype must be {expected} as in base, got {got} in {label}")
    return found


def is_directory(output: str | os.PathLike[str], shard_size: Any) -> bool:
    """Whether an output is meant to be a directory: shards, a trailing slash, no suffix, or it is one already."""
    path = Path(output)
    return shard_size is not None or str(output).endswith(os.sep) or (path.suffix == "" or path.is_dir())


def _is_ours(path: Path) -> bool:
    return path.is_file() and (path.suffix in (".safetensors", ".json", ".txt", ".model", ".md") or path.name[0] == ".")
