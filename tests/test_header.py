"""Safetensors headers: what the library writes is read, and whatever else is met is one typed error."""

import json
import os
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from taskarith_fast.checkpoint.header import Entry, layout, parse_header, read_header
from taskarith_fast.checkpoint.sources import TORCH_DTYPES, open_source
from taskarith_fast.errors import CheckpointError


def _file(path):
    save_file(
        {"a": torch.ones(3, 2), "b": torch.zeros(5, dtype=torch.int64), "c": torch.ones(()).half()}, path, {"k": "v"}
    )
    return path


def test_what_the_library_writes_is_read_back(tmp_path):
    state = {n: torch.zeros(2, 3).to(d) for n, d in TORCH_DTYPES.items()}
    save_file(state, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    assert {n: (e.dtype, e.shape) for n, e in header.entries.items()} == {n: (n, (2, 3)) for n in TORCH_DTYPES}


def test_what_is_laid_out_is_read_by_the_library(tmp_path):
    entries = {
        "é\n": Entry("F32", (2, 2)),
        "b": Entry("BOOL", (3,)),
        "empty": Entry("F16", (0, 4)),
        "s": Entry("I64", ()),
    }
    text, placed = layout(entries, {"format": "pt"})
    data = bytearray(text + bytes(16 + 3 + 8))
    data[placed["s"].begin] = 7
    (tmp_path / "x.safetensors").write_bytes(data)
    state = load_file(tmp_path / "x.safetensors")
    assert int(state["s"]) == 7 and state["empty"].shape == (0, 4) and set(state) == set(entries)
    assert all(e.begin % 4 == 0 for n, e in placed.items() if e.dtype == "F32")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F31"}, {"dtype": 3}, {"shape": [-3, -2]}, {"shape": [3.0, 2]}, {"shape": [True, 6]}, {"shape": "32"},
        {"shape": [2**63, 2]}, {"shape": [3, 3]}, {"data_offsets": [0, 23]}, {"data_offsets": [24, 0]},
        {"data_offsets": [4, 28]},
        {"data_offsets": [0, 24, 48]}, {"data_offsets": None}, {"extra": 1}, {"shape": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_is_not_what_the_format_asks_for_is_refused(change):
    table = {"a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]} | change}
    text = json.dumps(table).encode()
    with pytest.raises(CheckpointError):
        parse_header(text, 8 + len(text) + 24)


@pytest.mark.parametrize(
    "text",
    [
        b"[]", b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a":1,"a":2}', b"[" * 100_000, b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": []}',
        b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
    ],
    ids=range(10),
)  # fmt: skip
def test_a_header_that_is_not_what_the_format_asks_for_is_refused(text):
    with pytest.raises(CheckpointError):
        parse_header(text, 8 + len(text) + 2)


def test_mutated_files_give_typed_errors_only(tmp_path):
    good, draw = bytearray(_file(tmp_path / "x.safetensors").read_bytes()), random.Random(0)
    path, refused = tmp_path / "y.safetensors", 0
    for _ in range(800):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            kind = draw.randrange(4)
            if kind == 0:
                data[at] = draw.randrange(256)
            elif kind == 1:
                del data[at : at + draw.randint(1, 9)]
            elif kind == 2:
                data[at:at] = os.urandom(draw.randint(1, 9))
            else:
                data[at] = draw.choice(b'{}[]",:0123456789-e')
            if not data:
                data = bytearray(b"x")
        path.write_bytes(data)
        try:
            source = open_source(path)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)[: str(error).index("y.safetensors")]
            continue
        for name, entry in source.entries.items():
            source.read(name, 0, memoryview(bytearray(entry.nbytes)))
    assert refused > 400


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_gives_a_header_or_a_typed_error(value):
    text = json.dumps(value).encode()
    try:
        header = parse_header(text, 8 + len(text))
    except CheckpointError:
        return
    assert all(entry.nbytes == 0 for entry in header.entries.values())


def test_a_header_longer_than_the_file_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="no room for its header"):
        read_header(tmp_path / "x.safetensors")
