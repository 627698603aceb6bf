"""Reading ahead and writing behind: two threads and a fixed number of buffers around the arithmetic."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.checkpoint.shards import ShardWriter
from taskarith_fast.checkpoint.sources import TORCH_DTYPES, Source
from taskarith_fast.merging.pieces import Piece

_LINE = 64  # bytes
_DONE = object()
_FLUSH_EVERY = 1 << 26  # bytes written between two flushes


def loaded_bytes(sources: Sequence[Source], piece: Piece) -> int:
    """Memory that a piece of every source takes in a buffer."""
    return sum(_aligned(part.numel * _item_bytes(source, part.name)) for source, part in _parts(sources, piece))


def read_piece(source: Source, piece: Piece) -> Tensor:
    """A piece in memory of its own."""
    out = torch.empty(piece.shape, dtype=TORCH_DTYPES[source.entries[piece.name].dtype])
    source.read(piece.name, piece.begin * out.element_size(), byte_view(out))
    return out


class Buffers:
    """Two buffers for reading, and one for a piece that fits into neither.

    Args:
        size: Bytes of each of the two.
        large: Bytes of the third; 0 if none is needed.
    """

    def __init__(self, size: int, large: int = 0) -> None:
        self.size = size
        self._small: queue.Queue[Tensor] = queue.Queue()
        self._large: queue.Queue[Tensor] = queue.Queue()
        for _ in range(2):
            self._small.put(torch.empty(size, dtype=torch.uint8))
        if large:
            self._large.put(torch.empty(large, dtype=torch.uint8))

    def take(self, nbytes: int, stop: threading.Event) -> Tensor | None:
        """A free buffer of at least `nbytes`, once there is one; None if `stop` is set first."""
        free = self._small if nbytes <= self.size else self._large
        while not stop.is_set():
            try:
                return free.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def give(self, buffer: Tensor) -> None:
        (self._small if buffer.numel() == self.size else self._large).put(buffer)


def read_ahead(
    sources: Sequence[Source], pieces: Sequence[Piece], buffers: Buffers
) -> Iterator[tuple[Piece, list[Tensor]]]:
    """Yield every piece with its tensor of every source, in order, reading the next one meanwhile.

    The first sources are models; others, read beside them, may lack tensors or hold them in shapes of their own. The
    tensors are views of a buffer: they hold until the next piece is asked for.
    """
    ready: queue.Queue[Any] = queue.Queue()
    stop = threading.Event()
    reader = threading.Thread(target=_read_all, args=(sources, pieces, buffers, ready, stop), daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not _DONE:
            if isinstance(item, BaseException):
                raise item
            piece, tensors, buffer = item
            try:
                yield piece, tensors
            finally:
                buffers.give(buffer)
    finally:
        stop.set()
        _drain(ready, buffers)
        reader.join()
        _drain(ready, buffers)


class WriteBehind:
    """Writes tensors in a thread of its own; at most two wait. An error shows at the next call.

    Args:
        files: Where to write.
        flush: Bring the bytes to the disk as they come, so that the end need not wait for all of them.
    """

    def __init__(self, files: ShardWriter, flush: bool = True) -> None:
        self._files, self._flush = files, flush
        self._waiting: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> WriteBehind:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting.put(_DONE)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def write(self, piece: Piece, tensor: Tensor) -> None:
        """Write the entries of `piece`; `tensor` must not change afterwards."""
        if self._error is not None:
            raise self._error
        self._waiting.put((piece, tensor))

    def _run(self) -> None:
        unflushed = 0
        while (item := self._waiting.get()) is not _DONE:
            if self._error is not None:
                continue
            piece, tensor = item
            try:
                data = byte_view(tensor)
                self._files.write(piece.name, piece.begin * tensor.element_size(), data)
                unflushed += len(data)
                if self._flush and unflushed >= _FLUSH_EVERY:
                    self._files.flush()
                    unflushed = 0
            except BaseException as error:
                self._error = error


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor."""
    flat = tensor.detach().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def _read_all(
    sources: Sequence[Source],
    pieces: Sequence[Piece],
    buffers: Buffers,
    ready: queue.Queue[Any],
    stop: threading.Event,
) -> None:
    try:
        with ThreadPoolExecutor(readers()) as pool:
            for piece in pieces:
                buffer = buffers.take(loaded_bytes(sources, piece), stop)
                if buffer is None:
                    return
                tensors = _carve(sources, piece, buffer)
                _fill(pool.map if readers() > 1 else map, sources, piece, tensors)
                ready.put((piece, tensors, buffer))
        ready.put(_DONE)
    except BaseException as error:
        ready.put(error)


def readers() -> int:
    """Threads that read: half of the processors, at most four."""
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def _fill(apply: Callable[..., Any], sources: Sequence[Source], piece: Piece, tensors: list[Tensor]) -> None:
    def read(where: tuple[Source, Piece], tensor: Tensor) -> None:
        source, part = where
        source.read(part.name, part.begin * tensor.element_size(), byte_view(tensor))

    for _ in apply(read, _parts(sources, piece), tensors):
        pass


def _carve(sources: Sequence[Source], piece: Piece, buffer: Tensor) -> list[Tensor]:
    tensors, offset = [], 0
    for source, part in _parts(sources, piece):
        size = part.numel * _item_bytes(source, part.name)
        dtype = TORCH_DTYPES[source.entries[part.name].dtype]
        tensors.append(buffer[offset : offset + size].view(dtype).reshape(part.shape))
        offset += _aligned(size)
    return tensors


def _parts(sources: Sequence[Source], piece: Piece) -> list[tuple[Source, Piece]]:
    """Which run each source that has the tensor holds of a piece; of a piece that is a whole tensor, all it has."""
    whole = piece.numel == sources[0].entries[piece.name].numel
    return [
        (source, Piece(piece.name, 0, source.entries[piece.name].shape) if whole else piece)
        for source in sources
        if piece.name in source.entries
    ]


def _drain(ready: queue.Queue[Any], buffers: Buffers) -> None:
    while True:
        try:
            item = ready.get_nowait()
        except queue.Empty:
            return
        if isinstance(item, tuple):
            buffers.give(item[2])


def _item_bytes(source: Source, name: str) -> int:
    return TORCH_DTYPES[source.entries[name].dtype].itemsize


def _aligned(size: int) -> int:
    return -(-size // _LINE) * _LINE
