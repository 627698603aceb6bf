"""What a PyTorch file may build: storages and tensors, as records that are checked before a byte is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.machine import Builder, Named, Stub, describe, safe_key

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *_STORAGES.values(),
        *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
_MAX_DIMENSIONS = 64
_MAX_BYTES = 1 << 50  # more than any file holds; keeps the arithmetic below in small integers


@dataclass(eq=False)
class StorageRef:
    """One storage of the file: its key, size in bytes and, once the container is read, its bytes.

    A legacy file may store a part of another storage; `start` is then the part's first byte in it.
    """

    key: str
    dtype: torch.dtype
    nbytes: int
    start: int = 0
    data: Tensor | None = None


@dataclass(eq=False)
class TensorRef:
    """A tensor that the file describes: a view of a storage, checked to lie inside it."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once it stands alone."""
        return _product(self.shape) * self.dtype.itemsize

    @property
    def view(self) -> tuple[Any, ...]:
        """Equal for two tensors exactly if they are the same view of the same storage."""
        return (self.storage.key, self.storage.start, self.dtype, self.offset, self.shape, self.stride)

    def tensor(self) -> Tensor:
        """The tensor itself; tensors of one storage share memory, as they did when they were saved."""
        assert self.storage.data is not None, "the container reads the storages first"
        data = self.storage.data
        if self.storage.start:
            data = data[self.storage.start :]
        if self.dtype is torch.bool and data.numel() and int(data.max()) > 1:
            raise CheckpointError("a tensor of truth values holds bytes other than 0 and 1")
        item = self.dtype.itemsize
        whole = data[: data.numel() // item * item].view(self.dtype)
        return whole.as_strided(self.shape, self.stride, self.offset + whole.storage_offset())


def storage_dtype(kind: Any) -> torch.dtype:
    """The dtype of a storage class that the file names."""
    if not isinstance(kind, Named) or kind.path not in _STORAGES:
        name = kind.path if isinstance(kind, Named) else kind
        raise CheckpointError(f"expected a storage of torch, got {describe(name)}")
    return _STORAGES[kind.path]


def storage_bytes(dtype: torch.dtype, numel: Any) -> int:
    """The size of a storage of `numel` elements."""
    if not _is_size(numel) or numel * dtype.itemsize > _MAX_BYTES:
        raise CheckpointError(f"a storage must hold a sensible number of elements, got {describe(numel)}")
    return numel * dtype.itemsize


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def _sizes(name: str, sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, (list, tuple)) or len(sizes) > _MAX_DIMENSIONS or not all(map(_is_size, sizes)):
        raise CheckpointError(f"a tensor's {name} must be a few nonnegative sizes, got {describe(sizes)}")
    return tuple(sizes)


def _tensor(storage: Any, dtype: torch.dtype | None, offset: Any, shape: Any, stride: Any) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise CheckpointError(f"a tensor must be made from a storage, got {describe(storage)}")
    dtype = dtype or storage.dtype
    shape, stride = _sizes("shape", shape), _sizes("stride", stride)
    if len(shape) != len(stride) or not _is_size(offset):
        raise CheckpointError("a tensor's shape, stride and offset do not fit together")
    if _product(shape) > _MAX_BYTES:
        raise CheckpointError("a tensor's shape names more elements than any file holds")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if _product(shape) and (last + 1) * dtype.itemsize > storage.nbytes:
        raise CheckpointError(
            f"a tensor reaches to byte {(last + 1) * dtype.itemsize} of a storage of {storage.nbytes} bytes"
        )
    if not _product(shape):
        offset = 0
    return TensorRef(storage, dtype, offset, shape, stride)


def _arguments(args: tuple[Any, ...], at_least: int) -> tuple[Any, ...]:
    if len(args) < at_least:
        raise CheckpointError(f"a tensor must be described by {at_least} values or more, got {len(args)}")
    return args


def _rebuild_tensor(args: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, stride = _arguments(args, 4)[:4]
    return _tensor(storage, None, offset, shape, stride)


def _rebuild_tensor_v3(args: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, stride, _, _, kind = _arguments(args, 7)[:7]
    if not isinstance(kind, Named) or kind.path not in _DTYPES:
        raise CheckpointError(f"expected a dtype of torch, got {describe(getattr(kind, 'path', kind))}")
    return _tensor(storage, _DTYPES[kind.path], offset, shape, stride)


def _rebuild_parameter(args: tuple[Any, ...]) -> Any:
    return _arguments(args, 1)[0]


def _rebuild_from_type(args: tuple[Any, ...]) -> Any:
    # (function, type, its arguments, attributes): a tensor with attributes, or of a subclass.
    function, _, arguments = _arguments(args, 3)[:3]
    if isinstance(function, Named) and function.path in BUILDERS and isinstance(arguments, tuple):
        if function.path == "torch._tensor._rebuild_from_type_v2":
            raise CheckpointError("a tensor must not be wrapped twice")
        return BUILDERS[function.path](arguments)
    return Stub(function, arguments)


def _ordered_dict(args: tuple[Any, ...]) -> Any:
    result: dict[Any, Any] = {}
    for pair in args[0] if args and isinstance(args[0], list) else ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise CheckpointError("an ordered dict must be made from pairs")
        result[safe_key(pair[0])] = pair[1]
    return result


def _default_dict(args: tuple[Any, ...]) -> Any:
    return {}


def _collection(args: tuple[Any, ...]) -> Any:
    return args[0] if args and isinstance(args[0], (list, tuple)) else []


BUILDERS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.nn.parameter.Parameter": _rebuild_parameter,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    **{f"{module}.{name}": _collection for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    "torch.Size": _collection,
}
