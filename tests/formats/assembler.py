"""Pickles and archives put together byte by byte, so that they can say what no honest program would."""

from __future__ import annotations

import io
import struct
import zipfile

W = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
STOP = b"."


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str | bytes) -> bytes:
    encoded = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    encoded = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(encoded)) + encoded


def tup(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def lst(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"l"


def dct(entries: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tup(*arguments) + b"R"


def storage(key: bytes = text("0"), numel: bytes = number(4), kind: bytes = name("torch", "FloatStorage")) -> bytes:
    return tup(text("storage"), kind, key, text("cpu"), numel) + b"Q"


def tensor(
    shape: bytes = tup(number(4)),
    stride: bytes = tup(number(1)),
    offset: bytes = number(0),
    held: bytes = b"",
) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, held or storage(), offset, shape, stride, b"\x89", call(name("collections", "OrderedDict")))


def module(
    parameters: bytes | None = None, children: bytes | None = None, more: dict[str, bytes] | None = None
) -> bytes:
    state = {
        "training": b"\x88",
        "_parameters": dct({"w": tensor()}) if parameters is None else parameters,
        "_buffers": b"}",
        "_modules": b"}" if children is None else children,
        **(more or {}),
    }
    return name("src.modeling", "ImageEncoder") + b")\x81" + dct(state) + b"b"


def archive(pickled: bytes, storages: dict[str, bytes] | None = None, *, prefix: str = "m/", **more: bytes) -> bytes:
    """A torch archive around a pickle, protocol 2 unless it says so itself."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{prefix}data.pkl", pickled if pickled[:1] == b"\x80" else b"\x80\x02" + pickled + STOP)
        file.writestr(f"{prefix}byteorder", more.get("byteorder", b"little"))
        for key, value in ({"0": W} if storages is None else storages).items():
            file.writestr(f"{prefix}data/{key}", value)
        file.writestr(f"{prefix}version", b"3\n")
    return out.getvalue()


def members(*pairs: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for path, value in pairs:
            file.writestr(path, value)
    return out.getvalue()


def legacy(
    pickled: bytes | None = None,
    *,
    magic: int = 0x1950A86A20F9469CFC6C,
    protocol: int = 1001,
    system: bytes = dct({"little_endian": b"\x88"}),
    keys: bytes = lst(text("0")),
    stored: bytes = struct.pack("<q", 4) + W,
) -> bytes:
    def one(body: bytes) -> bytes:
        return b"\x80\x02" + body + STOP

    short_magic = b"\x8a\x0a" + magic.to_bytes(10, "little")
    body = dct({"w": tensor()}) if pickled is None else pickled
    return one(short_magic) + one(number(protocol)) + one(system) + one(body) + one(keys) + stored
