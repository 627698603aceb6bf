"""The errors a user can meet: one tree, one line each, exit code 2 on the command line."""

from __future__ import annotations

from collections.abc import Sequence


class TaskarithError(ValueError):
    """Base of all errors that the input, not the program, is to blame for."""


class ArgumentError(TaskarithError):
    """An argument is outside its domain; the message names it, what was expected, and what came."""


class CheckpointError(TaskarithError):
    """A checkpoint cannot be read, or does not fit the others; the message names file and tensor."""


class DataError(TaskarithError):
    """A dataset is missing, incomplete, or not what its name says."""


class BackendError(TaskarithError):
    """A backend was asked for by name and is not available here; the message says why."""


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a `value` that is none of `choices`; `name` is the argument's name.

    Raises:
        ArgumentError: With the name, the choices and the value.
    """
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
