"""From the records of a pickle to a flat state dict: which object is the model, its tensors' names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.machine import Stub, describe
from taskarith_fast.formats.rebuild import TensorRef

_MAX_DEPTH = 100
_MAX_WORK = 1_000_000  # entries looked at in all, whatever is shared with what
_MAX_NAME = 500
_SLACK = 64 << 20

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")


@dataclass(frozen=True)
class FoundState:
    """Tensors by name, where they were found, what was left out; `others`: what was no tensor among them."""

    tensors: dict[str, TensorRef]
    source: str
    skipped: tuple[str, ...]
    is_module: bool = False
    others: tuple[str, ...] = ()


class _Budget:
    """Counts the entries looked at: shared dicts and modules can describe far more than the file holds."""

    def __init__(self) -> None:
        self._left = _MAX_WORK

    def spend(self, entries: int) -> None:
        self._left -= entries + 1
        if self._left < 0:
            raise CheckpointError("the file describes a module that contains itself, or far too many entries")


def find_state(root: Any, key: str | None = None) -> FoundState:
    """Find the model in what a file holds: a module, a state dict, or an entry that is one of both.

    Args:
        root: What the pickle machine returned.
        key: The entry to take; None takes the first of `WRAPPERS` that is there.

    Raises:
        CheckpointError: If there is no model, or there are several entries and none has a usual name.
    """
    if key is not None:
        entries = _entries(root)
        if entries is None or key not in entries:
            have = ", ".join(map(describe, list(entries or {})[:8])) or "none"
            raise CheckpointError(f"the file has no entry {key!r}; its entries: {have}")
        return _checked(_state_of(entries[key], _Budget()))
    budget = _Budget()
    found = _state_of(root, budget)
    return _checked(found if found is not None else _wrapped(root, budget))


def _wrapped(root: Any, budget: _Budget) -> FoundState | None:
    entries = _entries(root) or {}
    models = {name: m for name in entries if isinstance(name, str) and (m := _state_of(entries[name], budget))}
    chosen = next((name for name in WRAPPERS if name in models), None)
    if chosen is None and len(models) > 1:
        raise CheckpointError(f"the file has several models, {', '.join(map(describe, models))}: choose one with key")
    if chosen is None:
        chosen = next(iter(models), None)
    if chosen is None:
        return None
    found = models[chosen]
    others = tuple(f"entry {describe(name)}" for name in entries if name != chosen)
    source = f"the entry {describe(chosen)}: {found.source}"
    return FoundState(found.tensors, source, found.skipped + others, found.is_module, found.others)


def _entries(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, Stub) and value.pairs:  # a subclass of dict
        return {key: entry for key, entry in value.pairs if isinstance(key, str)}
    return None


def _state_of(value: Any, budget: _Budget) -> FoundState | None:
    """The state of a module, or a state dict; None if `value` is neither."""
    if isinstance(value, Stub) and _attributes(value) is not None:
        source = f"a module of class {describe(value.class_name)[1:-1]}"
        tensors: dict[str, TensorRef] = {}
        for name, ref in _walk(value, budget):
            if tensors.setdefault(name, ref) is not ref:
                raise CheckpointError(f"the module has two tensors named {describe(name)}")
        return FoundState(tensors, source, (), is_module=True)
    entries = _entries(value)
    budget.spend(len(entries or ()))
    if not entries or not any(isinstance(entry, TensorRef) for entry in entries.values()):
        return None
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorRef)}
    skipped = tuple(f"entry {describe(n)}" for n, entry in entries.items() if not isinstance(entry, TensorRef))
    return FoundState(tensors, "a state dict", skipped, others=skipped)


def _attributes(module: Stub) -> dict[Any, Any] | None:
    """The module's `__dict__`, or None if the object is no module."""
    state = module.state
    if isinstance(state, tuple) and state and isinstance(state[0], dict):
        state = state[0]
    if not isinstance(state, dict):
        return None
    return state if all(isinstance(state.get(k), dict) for k in ("_parameters", "_modules")) else None


def _walk(root: Stub, budget: _Budget) -> Iterator[tuple[str, TensorRef]]:
    """Names and tensors in the order of `Module.state_dict`: parameters, buffers, then the children's."""
    stack: list[tuple[str, Any, int]] = [("", root, 0)]
    while stack:
        prefix, module, depth = stack.pop()
        if depth > _MAX_DEPTH or len(prefix) > _MAX_NAME:
            raise CheckpointError("the module is nested too deep, or contains itself")
        attributes = _attributes(module) if isinstance(module, Stub) else None
        if attributes is None:
            raise CheckpointError(f"{describe(prefix)[1:-1]} must be a module, got {describe(module)}")
        budget.spend(len(attributes["_modules"]))
        yield from _own_tensors(prefix, attributes, budget)
        children = [(n, m) for n, m in attributes["_modules"].items() if m is not None]
        stack.extend((f"{prefix}{_name(n)}.", m, depth + 1) for n, m in reversed(children))


def _own_tensors(prefix: str, attributes: dict[Any, Any], budget: _Budget) -> Iterator[tuple[str, TensorRef]]:
    names, buffers = attributes.get("_non_persistent_buffers_set"), attributes.get("_buffers")
    names = names if isinstance(names, (list, tuple)) else ()
    buffers = buffers if isinstance(buffers, dict) else {}
    budget.spend(len(names) + len(buffers) + len(attributes["_parameters"]))
    hidden = {name for name in names if isinstance(name, str)}
    for tensors in (attributes["_parameters"], buffers):
        for name, value in tensors.items():
            if value is None or (tensors is buffers and name in hidden):
                continue
            full = f"{prefix}{_name(name)}"
            if not isinstance(value, TensorRef):
                kind = value.class_name if isinstance(value, Stub) else value
                raise CheckpointError(f"{full} must be a dense tensor, got {describe(kind)}")
            yield full, value


def _name(name: Any) -> str:
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        raise CheckpointError(f"a module or tensor must be named by a short text, got {describe(name)}")
    return name


def _checked(found: FoundState | None) -> FoundState:
    """Refuse names that are no text to print, and views that would multiply the file's bytes."""
    if found is None or not found.tensors:
        raise CheckpointError("the file holds no module and no state dict")
    for name in found.tensors:
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise CheckpointError(f"a tensor must have a printable name, got {describe(name)}")
    distinct = {ref.view: ref for ref in found.tensors.values()}
    stored = sum({(r.storage.key, r.storage.start): r.storage.nbytes for r in distinct.values()}.values())
    declared = sum(ref.nbytes for ref in distinct.values())
    if declared > 2 * stored + _SLACK:
        raise CheckpointError(f"the file describes {declared} bytes of tensors by {stored} bytes of data")
    return found
