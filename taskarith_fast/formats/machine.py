"""A pickle machine that executes nothing: it turns a pickle into records of what the file says.

`pickletools.genops` cuts the stream into opcodes; this module gives each opcode an inert meaning. A global
becomes a `Named`, a call becomes a `Stub` that remembers function and arguments, and only the calls in the
caller's table, all of them functions of ours, build anything. Nothing that the file names is ever imported,
looked up or called.

The work is bounded: opcodes are counted, containers grow by one reference an opcode, a state is kept and not
merged, and no value of the file is ever hashed but text and 64-bit integers.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from taskarith_fast.errors import CheckpointError

MAX_OPCODES = 2_000_000
_MAX_NAME = 1000


class Stream(Protocol):
    """What the machine reads from; `io.BytesIO` is one."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


@dataclass(eq=False, slots=True)
class Named:
    """A class or function that the file names; `path` is module and name with a dot between."""

    path: str


@dataclass(eq=False, slots=True)
class Stub:
    """An object of a class that is not built: what would be called, with what, and the state it was given."""

    of: Any
    args: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def class_name(self) -> str:
        """The class's dotted name, or a word where the file names none."""
        return self.of.path if isinstance(self.of, Named) else "an unnamed class"


Builder = Callable[[tuple[Any, ...]], Any]


def run(stream: Stream, builders: Mapping[str, Builder], persistent: Callable[[Any], Any]) -> Any:
    """Read one pickle.

    Args:
        stream: Positioned at the pickle; left right after its STOP.
        builders: Dotted name -> what stands for a call of it; it gets the tuple of arguments.
        persistent: What stands for a persistent id.

    Returns:
        Numbers, strings, bytes, lists, tuples, dicts, and whatever stands for the rest.

    Raises:
        CheckpointError: If the pickle is truncated, malformed, too long, or uses the extension registry or
            out-of-band buffers.
    """
    return _Machine(builders, persistent).run(stream)


def describe(value: Any) -> str:
    """A few printable characters for an error message, whatever the value is."""
    if isinstance(value, (str, bytes)):
        return ascii(value[:60])
    if isinstance(value, float) or value is None or (isinstance(value, int) and abs(value) < 2**64):
        return str(value)
    return f"a {type(value).__name__}"


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_REFUSED = {
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "the extension registry"),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), "out-of-band buffers"),
}


def _opcodes(stream: Stream) -> Iterator[tuple[str, Any]]:
    tokens = pickletools.genops(stream)  # type: ignore[arg-type]
    for count in range(MAX_OPCODES + 1):
        try:
            opcode, argument, _ = next(tokens)
        except StopIteration:
            return
        except (ValueError, OverflowError, struct.error, MemoryError, Warning) as error:
            raise CheckpointError(f"malformed pickle ({describe(str(error))})") from None
        if count == MAX_OPCODES:
            break
        yield opcode.name, argument
    raise CheckpointError(f"the pickle has more than {MAX_OPCODES} opcodes")


class _Machine:
    def __init__(self, builders: Mapping[str, Builder], persistent: Callable[[Any], Any]) -> None:
        self._builders = builders
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._charged = 0

    def run(self, stream: Stream) -> Any:
        for name, argument in _opcodes(stream):
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name == "STOP":
                return self._pop()
            elif name in _REFUSED:
                raise CheckpointError(f"the pickle uses {_REFUSED[name]}")
            elif name not in ("PROTO", "FRAME"):
                _ACTIONS[name](self, argument)
        raise CheckpointError("malformed pickle (no STOP)")

    def _pop(self) -> Any:
        if not self._stack:
            raise CheckpointError("malformed pickle (empty stack)")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise CheckpointError("malformed pickle (empty stack)")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._below:
            raise CheckpointError("malformed pickle (no mark)")
        values, self._stack = self._stack, self._below.pop()
        return values

    def _call(self, function: Any, args: Any) -> Any:
        if isinstance(function, Named) and isinstance(args, tuple):
            builder = self._builders.get(function.path)
            if builder is not None:
                self._charge(args)
                return builder(args)
        return Stub(function, args)

    def _charge(self, args: tuple[Any, ...]) -> None:
        # A builder may look at every item of its arguments, and the memo can hand it the same list for ever.
        self._charged += len(args) + sum(len(a) for a in args[:16] if isinstance(a, (list, tuple)))
        if self._charged > MAX_OPCODES:
            raise CheckpointError(f"the pickle's calls have more than {MAX_OPCODES} arguments")

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def pop_mark(self, _: Any) -> None:
        self._pop_mark()

    def dup(self, _: Any) -> None:
        self._stack.append(self._top())

    def put(self, index: int) -> None:
        self._memo[index] = self._top()

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise CheckpointError("malformed pickle (unknown memo entry)")
        self._stack.append(self._memo[index])

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise CheckpointError("malformed pickle (empty stack)")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def marked_tuple(self, _: Any) -> None:
        values = tuple(self._pop_mark())
        self._stack.append(values)

    def marked_list(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(values)

    def marked_dict(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append({})
        self._set_items(values)

    def append(self, _: Any) -> None:
        self._extend([self._pop()])

    def extend(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Stub):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise CheckpointError(f"malformed pickle (items appended to {describe(target)})")

    def set_item(self, _: Any) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def set_items(self, _: Any) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if len(values) % 2:
            raise CheckpointError("malformed pickle (a key without a value)")
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, dict):
            target.update((safe_key(key), value) for key, value in pairs)
        elif isinstance(target, Stub):
            target.pairs.extend(pairs)
        else:
            raise CheckpointError(f"malformed pickle (entries set on {describe(target)})")

    def named(self, argument: str) -> None:
        self._stack.append(Named(argument.replace(" ", ".", 1)))

    def stack_named(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise CheckpointError("malformed pickle (a class whose name is not text)")
        if len(module) + len(name) > _MAX_NAME:
            raise CheckpointError(f"malformed pickle (a class whose name has more than {_MAX_NAME} letters)")
        self._stack.append(Named(f"{module}.{name}"))

    def call(self, _: Any) -> None:
        args = self._pop()
        self._stack.append(self._call(self._pop(), args))

    def call_new_ex(self, _: Any) -> None:
        keywords, args = self._pop(), self._pop()
        self._stack.append(Stub(self._pop(), (args, keywords)))

    def instance(self, argument: str) -> None:
        args = tuple(self._pop_mark())
        self._stack.append(self._call(Named(argument.replace(" ", ".", 1)), args))

    def marked_call(self, _: Any) -> None:
        values = self._pop_mark()
        if not values:
            raise CheckpointError("malformed pickle (an object of no class)")
        self._stack.append(self._call(values[0], tuple(values[1:])))

    def build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        # A state dict's OrderedDict carries `_metadata` and parameters may carry attributes: of no use here.
        if isinstance(target, Stub) and target.state is None:
            target.state = state

    def persistent(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))

    def text_persistent(self, _: Any) -> None:
        raise CheckpointError("malformed pickle (a persistent id in text)")


def safe_key(key: Any) -> Any:
    """`key` where hashing it is quick whoever wrote it, else a Stub: no tensor's name, and distinct."""
    if isinstance(key, (str, bool)) or key is None or (isinstance(key, int) and -(2**63) <= key < 2**63):
        return key
    return Stub("key", (key,))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": _Machine.marked_tuple,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.marked_list,
    "DICT": _Machine.marked_dict,
    "FROZENSET": _Machine.marked_list,
    "APPEND": _Machine.append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.extend),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_named,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "NEWOBJ_EX": _Machine.call_new_ex,
    "INST": _Machine.instance,
    "OBJ": _Machine.marked_call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "PERSID": _Machine.text_persistent,
}
