"""The sources of the text pack: WordNet's glosses and examples, and the descriptions of Debian's packages.

Every reader yields `Text`s: one text, the name of its class, and the keys that must stay within one split: the
lemmas of a WordNet synset, the source package of a Debian package.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


def _names(words: str) -> tuple[str, ...]:
    return tuple(words.split())


# Lexicographer files of WordNet 3.0 by number, lexnames(5WN).
_NOUNS = _names(
    "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
)
_VERBS = _names(
    "body change cognition communication competition consumption contact creation emotion motion perception "
    "possession social stative weather"
)
CLASSES = dict(enumerate((*_NOUNS, *_VERBS), start=3))
SECTIONS = _names(
    "admin comm database editors electronics games gnome graphics hamradio mail math net science sound text utils "
    "vcs video web"
)
USES = _names(
    "chatting checking compressing configuring converting downloading editing gameplaying monitor organizing playing "
    "searching storing timekeeping viewing"
)
CONTENTS = _names(
    "archive audio db dictionary file font image logfile mail network-traffic software:package software:running "
    "software:source text video"
)

_WORDS = (3, 24)  # fewest and most words of a text


@dataclass(frozen=True)
class Text:
    """One text; `origin` says where it is from: a synset (n00001740) or a package."""

    text: str
    label: str
    keys: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class _Synset:
    origin: str
    lexicographer_file: int
    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


def read_nouns(wordnet: Path) -> Iterator[Text]:
    """Definitions of nouns by lexical class."""
    for synset in _synsets(wordnet, "noun"):
        yield _text(synset, synset.definition, CLASSES[synset.lexicographer_file])


def read_verbs(wordnet: Path) -> Iterator[Text]:
    """Definitions of verbs by lexical class."""
    for synset in _synsets(wordnet, "verb"):
        yield _text(synset, synset.definition, CLASSES[synset.lexicographer_file])


def read_examples(wordnet: Path) -> Iterator[Text]:
    """Sentences that show a verb's use, by the verb's lexical class."""
    for synset in _synsets(wordnet, "verb"):
        for example in synset.examples:
            yield _text(synset, example, CLASSES[synset.lexicographer_file])


def read_word_classes(wordnet: Path) -> Iterator[Text]:
    """Definitions by part of speech."""
    for part, name in (("noun", "noun"), ("verb", "verb"), ("adj", "adjective"), ("adv", "adverb")):
        for synset in _synsets(wordnet, part):
            yield _text(synset, synset.definition, name)


def read_sections(packages: Path) -> Iterator[Text]:
    """Short descriptions by section of the archive."""
    for name, fields in _packages(packages):
        if (section := fields["Section"]) in SECTIONS:
            yield _described(name, fields, section)


def _read_facet(facet: str, values: tuple[str, ...]) -> Callable[[Path], Iterator[Text]]:
    """Short descriptions of packages that have exactly one tag of a facet, by that tag."""

    def read(packages: Path) -> Iterator[Text]:
        for name, fields in _packages(packages):
            tags = [tag.strip() for tag in fields.get("Tag", "").split(",")]
            found = [tag.removeprefix(f"{facet}::") for tag in tags if tag.startswith(f"{facet}::")]
            if len(found) == 1 and found[0] in values:
                yield _described(name, fields, found[0])

    return read


read_uses = _read_facet("use", USES)
read_contents = _read_facet("works-with", CONTENTS)


def is_fit(text: str) -> bool:
    """Neither very short nor very long, and in one line of ASCII."""
    return text.isascii() and text.isprintable() and _WORDS[0] <= len(text.split()) <= _WORDS[1]


def _text(synset: _Synset, text: str, label: str) -> Text:
    return Text(text, label, synset.lemmas, synset.origin)


def _described(name: str, fields: dict[str, str], label: str) -> Text:
    source = fields.get("Source", name).split()[0]
    return Text(fields["Description"], label, (source,), name)


def _synsets(wordnet: Path, part: str) -> Iterator[_Synset]:
    """The lines of data.noun and the like, wndb(5WN): offset lex_filenum ss_type w_cnt word lex_id ... | gloss."""
    for line in (wordnet / f"usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        offset, number, kind, words, *rest = data.split()
        lemmas = tuple(re.sub(r"\(\w+\)$", "", word).lower() for word in rest[: 2 * int(words, 16) : 2])
        definition = re.split(r'; "|; [^;"]*"', gloss)[0].strip().strip(";: ")
        examples = tuple(found.strip() for found in re.findall(r'"([^"]+)"', gloss))
        yield _Synset(f"{kind}{offset}", int(number), lemmas, definition, examples)


def _packages(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The stanzas of a Packages file, deb-control(5)."""
    fields: dict[str, str] = defaultdict(str)
    name = ""
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if not line:
            if "Package" in fields:
                yield fields["Package"], dict(fields)
            fields, name = defaultdict(str), ""
        elif line[0] in " \t":
            fields[name] += line
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
