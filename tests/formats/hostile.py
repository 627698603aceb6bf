"""The corpus: files that want something run, or memory, or time."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator

from tests.formats.assembler import (
    STOP,
    W,
    archive,
    call,
    dct,
    legacy,
    lst,
    members,
    module,
    name,
    number,
    raw,
    storage,
    tensor,
    text,
    tup,
)

SING = name("tests.formats.canary", "sing")
BIRD = name("tests.formats.canary", "Bird")


def payloads(canary: str) -> dict[str, bytes]:
    """Values that a trusting unpickler would run; inert when read as values beside the tensors."""
    command = text(f"touch {canary}")
    code = text(f"open({canary!r}, 'w')")
    opened = tup(text(canary), text("w"))
    return {
        "reduce_os_system": call(name("os", "system"), command),
        "reduce_posix_system": call(name("posix", "system"), command),
        "reduce_eval": call(name("builtins", "eval"), code),
        "reduce_python2_eval": call(name("__builtin__", "eval"), code),
        "reduce_exec": call(name("builtins", "exec"), code),
        "reduce_open": name("io", "open") + opened + b"R",
        "reduce_import": call(name("builtins", "__import__"), text("tests.formats.canary")),
        "reduce_getattr_chain": call(call(name("builtins", "getattr"), name("os", "path"), text("os.system")), command),
        "reduce_attrgetter": call(call(name("operator", "attrgetter"), text("system")), name("os", "path")),
        "reduce_partial": call(call(name("functools", "partial"), name("os", "system"), command)),
        "reduce_canary": call(SING),
        "reduce_runpy": call(name("runpy", "_run_code"), code, b"}"),
        "reduce_torch_load": call(name("torch", "load"), text(canary)),
        "reduce_load_from_bytes": call(name("torch.storage", "_load_from_bytes"), raw(archive(call(SING)))),
        "reduce_hub": call(name("torch.hub", "load"), text("a/b"), text("c")),
        "reduce_jit": call(name("torch.jit", "load"), text(canary)),
        "reduce_numpy_f2py": call(name("numpy.f2py.crackfortran", "getlincoef"), code, b"}"),
        "reduce_numpy_array": call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray")),
        "reduce_marshal": call(name("marshal", "loads"), text("x")),
        "reduce_function": call(name("types", "FunctionType"), call(name("types", "CodeType")), b"}"),
        "reduce_copyreg": call(name("copyreg", "_reconstructor"), BIRD, name("builtins", "object"), b"N"),
        "reduce_add_extension": call(name("copyreg", "add_extension"), text("os"), text("system"), number(7)),
        "reduce_list_of_arguments": SING + lst(number(1)) + b"R",
        "instance": b"(" + command + b"ios\nsystem\n",
        "object": b"(" + name("os", "system") + command + b"o",
        "newobj": BIRD + tup() + b"\x81",
        "newobj_popen": name("subprocess", "Popen") + tup(command) + b"\x81",
        "newobj_ex": BIRD + tup() + dct({"a": number(1)}) + b"\x92",
        "build_setstate": BIRD + tup() + b"\x81" + dct({"a": number(1)}) + b"b",
        "build_on_a_class": BIRD + tup(b"N", dct({"__hash__": SING})) + b"b",
        "build_reduce_state": BIRD + b")\x81" + call(SING) + b"b",
        "append_to_bird": BIRD + b")\x81" + number(1) + b"a",
        "extend_bird": BIRD + b")\x81(" + number(1) + b"e",
        "set_items_of_bird": BIRD + b")\x81(" + text("a") + number(1) + b"u",
        "bird_as_key": b"}(" + BIRD + b")\x81" + number(1) + b"u",
        "stack_global": text("os") + text("system") + b"\x93" + tup(command) + b"R",
        "dotted_name": text("os") + text("path.os.system") + b"\x93" + tup(command) + b"R",
        "dotted_module": name("os.path", "os.system") + tup(command) + b"R",
        "name_split_elsewhere": text("torch") + text("_utils._rebuild_parameter") + b"\x93" + tup(call(SING)) + b"R",
        "name_with_spaces": b"cos system\nx y\n" + tup(command) + b"R",
        "empty_name": text("") + text("") + b"\x93" + tup(command) + b"R",
        "dunder_name": name("builtins", "object.__subclasses__") + b")R",
        "wrapped_type": call(
            name("torch._tensor", "_rebuild_from_type_v2"), name("os", "system"), BIRD, tup(command), b"}"
        ),
        "parameter_state": call(
            name("torch._utils", "_rebuild_parameter_with_state"), tensor(), b"\x88", b"}", call(SING)
        ),
        "colliding_keys": b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 3000)) + b"u",
        "doubling_tuple_as_key": b"}(" + b")" + b"2\x86" * 60 + b"N" + b"u",
        "doubling_tuple": b")" + b"2\x86" * 200,
        "huge_integer": number(1 << 40_000),
        "nested_lists": b"]" * 20_000 + b"a" * 19_999,
        "text_integer": b"I" + b"9" * 4000 + b"\n",
    }


def hostile_pickles() -> Iterator[tuple[str, bytes]]:
    """Bodies that are refused for what they are: malformed, lying or without end."""
    deep = module()
    for _ in range(120):
        deep = module(b"}", dct({"m": deep}))
    yield "deep_modules", deep
    yield "module_in_itself", module()[:-1] + b"q\x01" + text("_modules") + dct({"m": b"h\x01"}) + b"sb"
    yield "module_as_own_child", _own_child()
    yield "exponential_modules", _exponential()
    for number_of, code in (("1", b"\x82\x07"), ("2", b"\x83\x07\x00"), ("4", b"\x84\x07\x00\x00\x00")):
        yield f"extension_{number_of}", code
    yield "out_of_band_buffer", b"\x97"
    yield "global_of_numbers", number(1) + number(2) + b"\x93"
    yield "endless_name", text("a" * 2000) + text("b") + b"\x93"
    yield "identity_number", number(3) + b"Q"
    yield "identity_text", b"P0\n"
    yield "identity_short", tup(text("storage")) + b"Q"
    yield "identity_other", tup(text("tensor"), b"N", b"N", b"N", b"N") + b"Q"
    yield "storage_key_number", dct({"w": tensor(held=storage(key=number(0)))})
    yield "storage_key_climbs", dct({"w": tensor(held=storage(key=text("../data.pkl")))})
    yield "storage_kind_text", dct({"w": tensor(held=storage(kind=text("FloatStorage")))})
    yield "storage_kind_system", dct({"w": tensor(held=storage(kind=name("os", "system")))})
    yield "storage_quantized", dct({"w": tensor(held=storage(kind=name("torch", "QInt8Storage")))})
    yield "storage_absent", dct({"w": tensor(held=storage(key=text("9")))})
    for label, numel in (
        ("negative", number(-1)),
        ("huge", number(1 << 62)),
        ("larger", number(5)),
        ("true", b"\x88"),
    ):
        yield f"storage_{label}", dct({"w": tensor(held=storage(numel=numel))})
    yield "storage_twice", dct({"w": tensor(), "v": tensor(held=storage(kind=name("torch", "IntStorage")))})
    yield "view_outside", dct({"w": tensor(shape=tup(number(5)))})
    yield "view_offset_outside", dct({"w": tensor(offset=number(1))})
    yield "view_offset_negative", dct({"w": tensor(offset=number(-1))})
    yield "view_stride_negative", dct({"w": tensor(stride=tup(number(-1)))})
    yield "view_stride_outside", dct({"w": tensor(stride=tup(number(1 << 40)))})
    yield "view_shape_negative", dct({"w": tensor(shape=tup(number(-4)))})
    yield "view_shape_text", dct({"w": tensor(shape=tup(text("4")))})
    yield "view_shape_none", dct({"w": tensor(shape=b"N")})
    yield "view_rank_differs", dct({"w": tensor(stride=tup(number(1), number(1)))})
    yield "view_many_dimensions", dct({"w": tensor(tup(*[number(1)] * 65), tup(*[number(1)] * 65))})
    yield "view_of_nothing", dct({"w": tensor(held=b"N")})
    yield "expanded_to_a_terabyte", dct({"w": tensor(shape=tup(number(1 << 40)), stride=tup(number(0)))})
    yield "expanded_beyond_integers", dct({"w": tensor(tup(*[number(1 << 40)] * 9), tup(*[number(0)] * 9))})
    expanded = [tensor(tup(number(i + 1), number(1 << 20)), tup(number(0), number(0))) for i in range(30)]
    yield "expanded_often", dct({f"w{i}": value for i, value in enumerate(expanded)})
    yield "rebuild_without_arguments", dct({"w": call(name("torch._utils", "_rebuild_tensor_v2"))})
    described = (storage(), number(0), tup(number(4)), tup(number(1)), b"\x89", b"}", name("os", "system"))
    yield "dtype_system", dct({"w": call(name("torch._utils", "_rebuild_tensor_v3"), *described)})
    yield "sparse_parameter", module(dct({"w": call(name("torch._utils", "_rebuild_sparse_tensor"), b"N")}))
    yield "parameter_number", module(dct({"w": number(3)}))
    yield "parameter_key_number", module(b"}(" + number(3) + tensor() + b"u")
    yield "child_number", module(children=dct({"m": number(3)}))
    yield "child_key_number", module(children=b"}(" + number(3) + module() + b"u")
    yield "two_tensors_of_one_name", module(dct({"m.w": tensor()}), dct({"m": module()}))
    yield "name_long", dct({"w" * 600: tensor()})
    yield "name_unprintable", dct({"w\x1b[2J": tensor()})
    yield "name_newline", dct({"w\nx": tensor()})
    yield "name_surrogate", dct({"w\ud800": tensor()})
    yield "name_empty", dct({"": tensor()})
    yield "state_of_numbers", dct({"w": number(3)})
    yield "nothing", b"N"
    yield "empty_dict", b"}"
    yield "stack_underflow", b"R"
    yield "tuple_underflow", b"\x87"
    yield "mark_missing", b"t"
    yield "pop_nothing", b"0"
    yield "memo_unknown", b"h\x07"
    yield "memo_unknown_text", b"g7\n"
    yield "append_to_number", number(1) + number(2) + b"a"
    yield "set_item_of_list", b"]" + number(1) + number(2) + b"s"
    yield "odd_items", b"}(" + number(1) + b"u"
    yield "object_of_nothing", b"(o"
    yield "no_such_opcode", b"\xff"
    yield "bytes_without_end", b"\x8e" + struct.pack("<Q", 1 << 62) + b"x"
    yield "text_without_end", b"\x8d" + struct.pack("<Q", 1 << 40) + b"x"
    yield "array_without_end", b"\x96" + struct.pack("<Q", (1 << 63) + 5) + b"x"
    yield "long_of_negative_size", b"\x8b" + struct.pack("<i", -1)
    yield "memo_index_huge", number(1) + b"r\xff\xff\xff\xff"
    yield "line_without_end", b"V" + b"a" * 5000
    yield "integer_with_many_digits", b"I" + b"9" * 5000 + b"\n"
    yield "too_many_opcodes", b"N0" * 1_000_001
    yield (
        "argument_list_reused",
        b"(" + b"N" * 2000 + b"lq\x01" + call(name("builtins", "set"), b"h\x01") * 1500,
    )


def _own_child() -> bytes:
    start = name("a", "B") + b")\x81q\x01"
    return start + dct({"_parameters": dct({"w": tensor()}), "_buffers": b"}", "_modules": dct({"m": b"h\x01"})}) + b"b"


def _exponential() -> bytes:
    """Forty levels of a module that has the next one twice: 2^40 names."""
    body = module() + b"q\x01"
    for _ in range(40):
        children = dct({"a": b"h\x01", "b": b"h\x01"})
        body += b"0" + module(b"}", children) + b"q\x01"
    return body


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Containers that are refused for what they are."""
    good = archive(dct({"w": tensor()}))
    yield "wrong_checksum", good.replace(W, W[:-1] + b"\x00")
    yield "wrong_checksum_of_the_pickle", good.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v1")
    pickled = b"\x80\x02" + dct({"w": tensor()}) + STOP
    bomb = pickled[:-1] + b"0" + text("x" * 50_000_000) + STOP
    yield "zip_bomb", members(("m/data.pkl", bomb), ("m/data/0", W), compression=zipfile.ZIP_DEFLATED)
    yield "compressed_bz2", members(("m/data.pkl", pickled), ("m/data/0", W), compression=zipfile.ZIP_BZIP2)
    yield "compressed_lzma", members(("m/data.pkl", pickled), ("m/data/0", W), compression=zipfile.ZIP_LZMA)
    yield "encrypted", _patched(good, b"PK\x01\x02", 8, b"\x01")
    yield "member_twice", _twice(pickled)
    yield "members_overlap", _patched(good, b"PK\x01\x02", 42, b"\x00\x00\x00\x00", at=2)
    yield "member_outside", _patched(good, b"PK\x01\x02", 42, b"\xff\xff\xff\x7f", at=2)
    yield (
        "member_larger_than_the_file",
        _patched(good, b"PK\x01\x02", 20, struct.pack("<II", 1 << 30, 1 << 30), at=2),
    )
    yield "directory_damaged", _patched(good, b"PK\x01\x02", 0, b"XX", at=1)
    yield "directory_outside", _patched(good, b"PK\x05\x06", 16, b"\xff\xff\xff\x7f")
    yield "directory_huge", _patched(good, b"PK\x05\x06", 12, b"\xff\xff\xff\x7f")
    yield "directory_miscounted", _patched(good, b"PK\x05\x06", 10, b"\x63\x00")
    yield "several_disks", _patched(good, b"PK\x05\x06", 4, b"\x01\x00")
    lie = b"PK\x06\x07" + struct.pack("<IQI", 0, 1 << 60, 1)
    end = good.rindex(b"PK\x05\x06")
    yield "end_record_elsewhere", good[:end] + lie + good[end:]
    yield "extra_fields_without_end", _with_extras(pickled)
    yield "climbing_member", archive(dct({"w": tensor()}), prefix="../")
    yield "climbing_member_beside", members(("m/data.pkl", pickled), ("m/data/0", W), ("../../canary", b"x"))
    yield "absolute_member", members(("m/data.pkl", pickled), ("m/data/0", W), ("/tmp/canary", b"x"))
    yield "backslash_member", good.replace(b"m/version", b"m\\versio")
    yield "unprintable_member", good.replace(b"m/version", b"m/vers\x1bon")
    yield "no_pickle", members(("m/data/0", W))
    yield "two_pickles", members(("m/data.pkl", pickled), ("n/data.pkl", pickled), ("m/data/0", W))
    yield "torchscript", members(("m/data.pkl", pickled), ("m/code/x.py", b""), ("m/constants.pkl", b""))
    yield "numpy_archive", members(("w.npy", b"\x93NUMPY"))
    yield "archive_of_archives", members(("a.pt", good), ("b.pt", good))
    yield "big_endian", archive(dct({"w": tensor()}), byteorder=b"big")
    yield "storage_short", archive(dct({"w": tensor()}), {"0": W[:-1]})
    yield (
        "boolean_of_other_bytes",
        archive(dct({"w": tensor(held=storage(kind=name("torch", "BoolStorage")))}), {"0": b"\x00\x01\x02\xff"}),
    )
    yield "only_an_end_record", b"PK\x03\x04" + b"PK\x05\x06" + bytes(18)
    for cut in (5, 60, 200, len(good) // 2, len(good) - 100, len(good) - 30, len(good) - 1):
        yield f"truncated_at_{cut}", good[:cut]
    yield "legacy_protocol", legacy(protocol=1002)
    yield "legacy_big_endian", legacy(system=dct({"little_endian": b"\x89"}))
    yield "legacy_system_is_a_number", legacy(system=number(3))
    yield "legacy_keys_are_a_number", legacy(keys=number(3))
    yield "legacy_key_unknown", legacy(keys=lst(text("1")))
    yield "legacy_key_twice", legacy(keys=lst(text("0"), text("0")), stored=(struct.pack("<q", 4) + W) * 2)
    yield "legacy_no_keys", legacy(keys=b"]")
    yield "legacy_length_differs", legacy(stored=struct.pack("<q", 5) + W)
    yield "legacy_length_negative", legacy(stored=struct.pack("<q", -4) + W)
    yield "legacy_truncated", legacy()[:-1]
    yield "legacy_header_runs", legacy(system=call(SING))
    part = tup(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(4))[:-1]
    for label, view in (("outside", (text("v"), number(3), number(2))), ("odd", (number(1),))):
        yield f"legacy_part_{label}", legacy(dct({"w": tensor(held=part + tup(*view) + b"tQ")}))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("pickle"))
    yield "tar", tar.getvalue()
    yield "gzip", gzip.compress(good)
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100)
    yield "gguf", b"GGUF" + bytes(100)
    yield "safetensors", struct.pack("<Q", 10) + b'{"w":{}}  '
    yield "plain_pickle", pickle.dumps({"w": [1.0]})
    yield "text", b"hello"
    yield "empty", b""


def _patched(data: bytes, magic: bytes, offset: int, value: bytes, at: int = 0) -> bytes:
    """Overwrite bytes of the `at`-th record that starts with `magic`."""
    position = -1
    for _ in range(at + 1):
        position = data.index(magic, position + 1)
    return data[: position + offset] + value + data[position + offset + len(value) :]


def _with_extras(pickled: bytes) -> bytes:
    """Two hundred entries with 16,000 empty extra fields each, and one that lies about its size."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(200):
            info = zipfile.ZipInfo(f"m/data/{i}")
            info.extra = b"\x02\x00\x00\x00" * 16_000
            file.writestr(info, W)
        file.writestr("m/data.pkl", pickled)
        file.writestr("m/data.pkl2", pickled)
    return _patched(out.getvalue(), b"PK\x01\x02", 20, struct.pack("<I", 3), at=201)


def _twice(pickled: bytes) -> bytes:
    return members(("m/data.pkl", pickled), ("m/data/0", W), ("m/data/1", W)).replace(b"m/data/1", b"m/data/0")
