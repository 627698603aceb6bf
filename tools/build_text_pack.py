"""Build the pack of text tasks that ships with the package, from WordNet and from Debian's package lists.

    python tools/build_text_pack.py --packages FILE [--cache DIR] [--out DIR]

FILE is a list of packages as the archive has it, dists/SUITE/main/binary-ARCH/Packages; `apt-get update` fetches one
below /var/lib/apt/lists, and `/usr/lib/apt/apt-helper cat-file` writes it plain. WordNet comes from the Debian package
wordnet-base. No random generator is used: order and splits follow SHA-256 of names.

A text is kept if all its keys (a synset's lemmas, a package's source) are dealt to one split; keys are dealt alike in
all tasks, so that no lemma or source is trained on in one task and tested on in another. A text that shares three
fifths of its words with one of an earlier split (test, val, train) is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import text_sources as sources
from build_pack import REPOSITORY, unpack
from pack_sources import Package, digest
from text_sources import Text

WORDNET = Package(
    "deb", "wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"
)  # fmt: skip
SPLITS = ("test", "val", "train")
_BOUNDS = (0.26, 0.42)  # of the keys go to test, and to test or val
_NEAR = 0.6
_DEBIAN_NOTICE = """\
Short descriptions of packages of the Debian distribution (section main), with their sections and tags, from its list
of packages. Each was written by the maintainers of the package that the file names beside it, and is under the licence
of that package, which is free by the Debian Free Software Guidelines; see
https://metadata.debian.org/changelogs/main/ for the copyright file of each.
"""


@dataclass(frozen=True)
class Recipe:
    """How one task is made: its reader, whether it reads "wordnet" or "packages", most texts a class in each split."""

    read: Callable[[Path], Iterator[Text]]
    source: str
    quota: tuple[int, int, int]  # test, val, train


RECIPES = {
    "nouns": Recipe(sources.read_nouns, "wordnet", (16, 8, 48)),
    "verbs": Recipe(sources.read_verbs, "wordnet", (27, 14, 80)),
    "verb-examples": Recipe(sources.read_examples, "wordnet", (27, 14, 80)),
    "word-classes": Recipe(sources.read_word_classes, "wordnet", (100, 50, 300)),
    "sections": Recipe(sources.read_sections, "packages", (22, 11, 64)),
    "uses": Recipe(sources.read_uses, "packages", (28, 14, 84)),
    "contents": Recipe(sources.read_contents, "packages", (30, 15, 90)),
}


def unambiguous(texts: Iterable[Text]) -> list[Text]:
    """Fit texts, each once, those that come with two labels not at all; in the order of their digests."""
    by_words: dict[tuple[str, ...], list[Text]] = defaultdict(list)
    for text in texts:
        if sources.is_fit(text.text):
            by_words[tuple(words(text.text))].append(text)
    kept = [same[0] for same in by_words.values() if len({text.label for text in same}) == 1]
    return sorted(kept, key=lambda text: digest(f"{text.origin} {text.text}"))


def words(text: str) -> list[str]:
    """Lower-case words and numbers, in order."""
    return re.findall(r"[a-z0-9]+", text.lower())


def split_of(text: Text) -> str | None:
    """The split of all the text's keys, or None if they are not of one."""

    def deal(key: str) -> str:
        place = int.from_bytes(digest(f"text/{key}")[:8], "big") / 2**64
        return SPLITS[(place >= _BOUNDS[0]) + (place >= _BOUNDS[1])]

    splits = {deal(key) for key in text.keys}
    return splits.pop() if len(splits) == 1 else None


class Earlier:
    """The word sets of texts taken, to find those near to a new one."""

    def __init__(self) -> None:
        self._sets: list[frozenset[str]] = []
        self._of_word: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        found = frozenset(words(text))
        for word in found:
            self._of_word[word].append(len(self._sets))
        self._sets.append(found)

    def near(self, text: str) -> bool:
        """Whether words in common are `_NEAR` or more of the words of both, for any text added."""
        own = frozenset(words(text))
        shared = Counter(place for word in own for place in self._of_word[word])
        return any(n >= _NEAR * (len(own) + len(self._sets[place]) - n) for place, n in shared.items())


def assign(recipe: Recipe, texts: list[Text]) -> dict[str, list[Text]]:
    """Fill the splits, test first, to the quota of each class; short texts first within a split."""
    earlier, dealt = Earlier(), dict[str, list[Text]]()
    splits = [split_of(text) for text in texts]
    for split, quota in zip(SPLITS, recipe.quota, strict=True):
        taken: Counter[str] = Counter()
        chosen = []
        for text, own in zip(texts, splits, strict=True):
            if own == split and taken[text.label] < quota and not earlier.near(text.text):
                taken[text.label] += 1
                chosen.append(text)
        for text in chosen:
            earlier.add(text.text)
        dealt[split] = sorted(chosen, key=lambda text: len(words(text.text)))
    return dealt


def build_task(name: str, files: dict[str, Path], out: Path) -> dict[str, object]:
    """Write one task's file, and return its entry of the manifest."""
    recipe = RECIPES[name]
    dealt = assign(recipe, unambiguous(recipe.read(files[recipe.source])))
    path = out / f"{name}.tsv"
    lines = ["split\tlabel\torigin\ttext"]
    lines += [f"{s}\t{t.label}\t{t.origin}\t{t.text}" for s in reversed(SPLITS) for t in dealt[s]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    wordnet = recipe.source == "wordnet"
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "classes": sorted({text.label for text in dealt["train"]}),
        "counts": {split: len(dealt[split]) for split in reversed(SPLITS)},
        "licence": "LicenseRef-WordNet-3.0" if wordnet else "LicenseRef-Debian-main",
        "source": "deb wordnet-base 1:3.0-37 (WordNet 3.0)" if wordnet else "Debian's list of packages, section main",
        "input_sha256": WORDNET.sha256 if wordnet else hashlib.sha256(files["packages"].read_bytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="a plain Packages file of Debian's archive")
    parser.add_argument("--cache", type=Path, help="keep downloads here (default: a temporary directory)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "taskarith_fast/data/text_pack")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pack-") as scratch:
        cache = options.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        wordnet = unpack(WORDNET, cache)
        (options.out / "LICENSES").mkdir(parents=True, exist_ok=True)
        licence = (wordnet / "usr/share/doc/wordnet-base/copyright").read_text(encoding="utf-8").strip()
        notice = "Definitions and examples of WordNet 3.0, copyright 2006 Princeton University, sampled.\n\n"
        (options.out / "LICENSES" / "wordnet.txt").write_text(f"{notice}{licence}\n", encoding="utf-8")
        (options.out / "LICENSES" / "debian.txt").write_text(_DEBIAN_NOTICE, encoding="utf-8")
        entries = {}
        for name in RECIPES:
            entries[name] = build_task(name, {"wordnet": wordnet, "packages": options.packages}, options.out)
            print(f"{name:14} {entries[name]['counts']}", flush=True)
        manifest = json.dumps({"format": 1, "tasks": entries}, indent=1)
        (options.out / "manifest.json").write_text(manifest + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
