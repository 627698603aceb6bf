"""A TOML file written by hand, checked against a model: whatever is wrong with it is one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from taskarith_fast.errors import ArgumentError

_LONGEST = 1 << 20  # bytes: it is written by hand

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path, model: type[Model], what: str) -> Model:
    """Read a file into a model.

    Args:
        path: The file.
        model: Says which keys there are, and of which types.
        what: What such a file is, for the errors: "recipe".

    Raises:
        ArgumentError: If it cannot be read, is no TOML, lacks a key, or has one that is not known or of the wrong type.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > _LONGEST:
        raise ArgumentError(f"{path}: expected a {what} of at most {_LONGEST} bytes, got {len(data)}")
    try:
        return model.model_validate(_parse(data.decode("utf-8"), what))
    except ValidationError as error:
        raise ArgumentError(f"{path}: {first_problem(error, model, what)}") from None
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: no valid TOML ({str(error).splitlines()[0]})") from None


def first_problem(error: ValidationError, model: type[BaseModel], what: str) -> str:
    """The first thing that is wrong, where, and the keys that there are if one is not known."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or what
    known = _fields(model, first["loc"][:-1])
    hint = f"; known keys: {', '.join(known)}" if first["type"] == "extra_forbidden" and known else ""
    return f"{where}: {first['msg'].lower()}{hint}"


def _fields(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Keys of the table at a place of a document; none where that cannot be told."""
    for part in place:
        if isinstance(part, str):
            kind = _table(model.model_fields[part].annotation) if part in model.model_fields else None
            if kind is None:
                return []
            model = kind
    return list(model.model_fields)


def _table(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as list[Model] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_table(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)


def _parse(text: str, what: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise ArgumentError(f"a {what} needs Python 3.11, or the package tomli") from None
    return tomllib.loads(text)
