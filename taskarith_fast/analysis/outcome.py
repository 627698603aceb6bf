"""What reproducing a table or a figure gave: numbers, figures, and whether the paper's claims hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from taskarith_fast.analysis.results import Measured

_SURE = 2.0


@dataclass(frozen=True)
class Check:
    """One statement of a paper, as a difference that it says is positive."""

    statement: str
    difference: float
    stderr: float | None
    """Standard error of the difference; None where there is no estimate."""
    unit: str = "points"

    @property
    def verdict(self) -> str:
        """Holds, does not hold, or undecided: within two standard errors of no difference."""
        if self.stderr is not None and abs(self.difference) <= _SURE * self.stderr:
            return "undecided"
        return "holds" if self.difference > 0 else "does not hold"

    @property
    def printed(self) -> str:
        """The difference with its error, both to the error's second digit."""
        if not self.stderr:
            return f"{self.difference:+.3g}{'' if self.stderr is None else ' ± 0'} {self.unit}".strip()
        decimals = max(0, 1 - math.floor(math.log10(self.stderr)))
        return f"{self.difference:+.{decimals}f} ± {self.stderr:.{decimals}f} {self.unit}".strip()


@dataclass(frozen=True)
class Table:
    """A table as it is printed; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """All that a page shows of one entry."""

    tables: list[Table] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    figures: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """Caption -> PNG for light pages, PNG for dark ones."""


def percent(measured: Measured | None) -> str:
    """A fraction in percent with its standard error; nothing for None."""
    return "" if measured is None else f"{100 * measured.value:.1f} ± {100 * measured.stderr:.1f}"


def number(value: object) -> str:
    """A published number as it is printed."""
    return "" if value is None else str(value)
