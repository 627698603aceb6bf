"""The zip archives that `torch.save` writes, read strictly: stored members, none overlapping, checksums held.

Nothing is ever unpacked to disk and nothing is decompressed, so names that climb directories and zip bombs
have no one to harm; such files are refused all the same, because PyTorch does not write them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.machine import describe

_MAX_DIRECTORY = 16 << 20  # bytes of the central directory: some 200,000 tensors
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    """One file of the archive: where its bytes are, and their CRC-32."""

    name: str
    start: int
    size: int
    crc: int


class Archive:
    """The members of a zip archive by name.

    Args:
        data: The whole file.

    Raises:
        CheckpointError: If it is truncated, or anything but a plain archive of stored, distinct members.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.members: dict[str, Member] = {}
        for entry in _entries(data):
            if entry.name in self.members:
                raise CheckpointError(f"the archive holds {describe(entry.name)} twice")
            self.members[entry.name] = entry
        self._check_overlaps()
        self._checked = any(member.crc for member in self.members.values())  # PyTorch can be told to write none

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str) -> memoryview:
        """The bytes of one member, checked against its CRC-32.

        Raises:
            CheckpointError: If there is no such member or its checksum is wrong.
        """
        if name not in self.members:
            raise CheckpointError(f"the archive lacks {describe(name)}")
        member = self.members[name]
        view = self._data[member.start : member.start + member.size]
        if self._checked and zlib.crc32(view) != member.crc:
            raise CheckpointError(f"the archive is damaged: {describe(name)} has a wrong checksum")
        return view

    def _check_overlaps(self) -> None:
        end = 0
        for member in sorted(self.members.values(), key=lambda m: (m.start, m.size)):
            if member.start < end:
                raise CheckpointError(f"the archive's members overlap at {describe(member.name)}")
            end = member.start + member.size


def _entries(data: memoryview) -> list[Member]:
    start, size, count = _directory(data)
    if size > _MAX_DIRECTORY:
        raise CheckpointError(f"the archive's directory has {size} bytes, more than {_MAX_DIRECTORY}")
    if start + size > len(data):
        raise CheckpointError("the archive is truncated (its directory lies outside the file)")
    entries, position = [], start
    while position < start + size:
        entry, position = _entry(data, position, start + size)
        if not entry.name.endswith("/"):
            entries.append(entry)
        count -= 1
    if count:
        raise CheckpointError("the archive's directory has another length than it says")
    return entries


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory."""
    tail = max(0, len(data) - (22 + _FULL16))
    found = bytes(data[tail:]).rfind(_END)
    if found < 0 or len(data) - tail - found < 22:
        raise CheckpointError("the archive is truncated (no end record)")
    end = tail + found
    disk, first_disk, _, count, size, start, _ = struct.unpack_from("<4H2LH", data, end + 4)
    if end >= 20 and bytes(data[end - 20 : end - 16]) == _LOCATOR64:
        (end64,) = struct.unpack_from("<Q", data, end - 12)
        if end64 + 56 > len(data) or bytes(data[end64 : end64 + 4]) != _END64:
            raise CheckpointError("the archive is damaged (no 64-bit end record where it is said to be)")
        disk, first_disk, _, count, size, start = struct.unpack_from("<2L4Q", data, end64 + 16)
    if disk or first_disk:
        raise CheckpointError("the archive is split over several files")
    return start, size, count


def _entry(data: memoryview, position: int, end: int) -> tuple[Member, int]:
    if position + _ENTRY.size > end:
        raise CheckpointError("the archive's directory is cut")
    fields = _ENTRY.unpack_from(data, position)
    magic, flags, method, crc, packed, size = fields[0], fields[3], fields[4], *fields[7:10]
    name_length, extra_length, comment_length, offset = *fields[10:13], fields[16]
    names = position + _ENTRY.size
    following = names + name_length + extra_length + comment_length
    if magic != b"PK\x01\x02" or following > end:
        raise CheckpointError("the archive's directory is damaged")
    name = _name(bytes(data[names : names + name_length]))
    extra = bytes(data[names + name_length : names + name_length + extra_length])
    size, packed, offset = _wide(extra, [size, packed, offset])
    if flags & 0x2041:
        raise CheckpointError(f"the archive's member {describe(name)} is encrypted")
    if method or packed != size:
        raise CheckpointError(f"the archive's member {describe(name)} is compressed; PyTorch stores them plain")
    return Member(name, _data_start(data, name, offset, size), size, crc), following


def _name(raw: bytes) -> str:
    name = raw.decode("utf-8", "replace")
    if not name.isprintable() or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise CheckpointError(f"the archive holds a file named {describe(name)}")
    return name


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Replace the values that say "see the 64-bit field" by what it holds."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - position - 4) // 8}Q", extra, position + 4))
            return [next(wide, value) if value == _FULL32 else value for value in values]
        position += 4 + length
    return values


def _data_start(data: memoryview, name: str, offset: int, size: int) -> int:
    if offset + _LOCAL.size <= len(data):
        fields = _LOCAL.unpack_from(data, offset)
        start = offset + _LOCAL.size + fields[9] + fields[10]
        if fields[0] == b"PK\x03\x04" and start + size <= len(data):
            return start
    raise CheckpointError(f"the archive is damaged: {describe(name)} is not where its directory says")
