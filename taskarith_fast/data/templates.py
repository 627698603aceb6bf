"""Templates: how a row of a language dataset becomes a text, its answer choices and the right one.

The prompts are our own wording; those of the papers come from promptsource, and can be given as `Template`s. The order
of the templates of a dataset is part of its meaning: template 0 is the one that calibration uses (TaLoS 2025).
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskarith_fast.data.text import Example
from taskarith_fast.errors import ArgumentError, DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """A prompt with the names of fields in braces, and where the choices are.

    >>> pets = Template("pets", "Is a {animal} a pet?", choices=("yes", "no"))
    >>> pets.render({"animal": "cat"}).text
    'Is a cat a pet?'
    """

    name: str
    """For a person to read and for messages."""
    prompt: str
    """The text, with fields of the row in braces; "{choices}" stands for the choices, joined by " or "."""
    choices: tuple[str, ...] = ()
    """Texts of the answers, in the order of the labels; they may have fields in braces. Empty: the row's own list."""
    choices_field: str = "choices"
    """The field with the row's own list of choices."""

    def __post_init__(self) -> None:
        for text in (self.prompt, *self.choices):
            _fields(text, self.name)

    def fields(self) -> tuple[str, ...]:
        """Names of the fields that a row must have."""
        named = [name for text in (self.prompt, *self.choices) for name in _fields(text, self.name)]
        own = [name for name in named if name != "choices"]
        return tuple(dict.fromkeys(own if self.choices else [*own, self.choices_field]))

    def check(self, columns: Any) -> None:
        """Refuse data without the template's fields.

        Raises:
            ArgumentError: If a field is missing.
        """
        known = list(columns)
        if missing := [field for field in self.fields() if field not in known]:
            raise ArgumentError(
                f"template {self.name!r} needs the fields {', '.join(self.fields())}, but the data lacks "
                f"{', '.join(missing)}; it has {', '.join(known)}"
            )

    def render(self, row: Row) -> Example:
        """Fill in one row; errors as `check`, and DataError if a row has fewer than two choices."""
        self.check(row)
        values = {name: str(row[name]) for name in row}
        own = tuple(c.format_map(values) for c in self.choices) or tuple(str(c) for c in row[self.choices_field])
        if len(own) < 2:
            raise DataError(f"template {self.name!r}: a row must have at least two choices, got {list(own)}")
        return Example(self.prompt.format_map(values | {"choices": " or ".join(own)}), own)


def place_of(answer: Any, known: Any, where: str) -> int:
    """The place of an answer among those known.

    Raises:
        DataError: If it is not one of them.
    """
    choices = list(known)
    if answer not in choices:
        raise DataError(f"{where}: the answer must be one of {', '.join(map(repr, choices))}, got {answer!r}")
    return choices.index(answer)


def _fields(text: str, name: str) -> list[str]:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ArgumentError(f"template {name!r}: {text!r} is not a format string ({error})") from None
    found = [field for _, field, _, _ in parsed if field is not None]
    if wrong := [field for field in found if not field.isidentifier()]:
        raise ArgumentError(f"template {name!r}: fields must be plain names, got {{{wrong[0]}}}")
    return found


TEMPLATES: Mapping[str, tuple[Template, ...]] = {
    "qasc": (
        Template("facts then question", "{fact1} {fact2} Given this, {question} Answers: {choices}. The answer is"),
        Template("question alone", "{question} Choose one: {choices}."),
    ),
    "wikiqa": (
        Template("is this an answer", "Question: {question}\nSentence: {answer}\nDoes it answer the question?",
                 choices=("no", "yes")),
        Template("title given", "On the page {document_title}: {answer}\nIs \"{question}\" answered here?",
                 choices=("no", "yes")),
    ),
    "quartz": (
        Template("passage then question", "{para}\n{question}\nWhich is it, {choices}?"),
        Template("question then passage", "{question} Use this to answer: {para} Options: {choices}."),
    ),
    "paws": (
        Template("same meaning", "First: {sentence1}\nSecond: {sentence2}\nDo both sentences mean the same?",
                 choices=("no", "yes")),
        Template("paraphrase", "Is \"{sentence2}\" a paraphrase of \"{sentence1}\"?", choices=("no", "yes")),
    ),
    "story_cloze": (
        Template("what follows", "{story}\nHow does the story end?"),
        Template("choose an ending", "{story}\nWhich ending fits: {choices}"),
    ),
    "winogrande": (
        Template("fill the blank", "{sentence}\nWhat does the _ stand for, {choices}?"),
        Template("replace", "The _ in the sentence below is {choices}.\n{sentence}"),
    ),
    "wsc": (
        Template("refers to", "{text}\nDoes \"{span2_text}\" stand for {span1_text}?", choices=("no", "yes")),
        Template("same thing", "In \"{text}\", are {span1_text} and \"{span2_text}\" the same?", choices=("no", "yes")),
    ),
    "rte": (
        Template("does it follow", "{premise}\nDoes it follow that \"{hypothesis}\"?", choices=("yes", "no")),
        Template("true given", "Given that {premise} Is it true that {hypothesis}", choices=("yes", "no")),
    ),
}  # fmt: skip
"""Templates of the paper's datasets, by the names of `load_text_dataset`."""
