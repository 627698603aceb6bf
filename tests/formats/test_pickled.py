"""Whole modules come out as their own state_dict() says, bit by bit, whatever class they are of."""

import sys
import types

import pytest
import torch
from torch import nn

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.pickled import peek_pickled, read_pickled
from tests.formats import models

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(thing, path, zipped):
    torch.save(thing, path, _use_new_zipfile_serialization=zipped)


def assert_same_state(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(raw(found[name]), raw(tensor)), name


def raw(tensor):
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


class Odd(nn.Module):
    """Everything a state dict has to get right."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(3).t())
        self.absent = None
        self.register_parameter("none", None)
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_buffer("counter", torch.tensor(7))
        self.register_buffer("expanded", torch.arange(5).expand(1, -1))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.half = nn.ParameterDict({"a": nn.Parameter(torch.randn(3, 5).half().t()), "b": torch.randn(2).bfloat16()})
        self.parts = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.Conv2d(2, 2, 1), nn.GELU())])
        self.flags = nn.ParameterList([nn.Parameter(torch.tensor([True, False]), requires_grad=False)])
        self.again = self.parts[0]
        self.parts[1][0].weight.note = "an attribute of a parameter"
        self.transform = [
            len,
            {"a": (1, 2.5, None)},
            torch.float32,
            torch.Size([2]),
            {3, 4},
            b"bytes",
            1 << 80,
        ]


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_module_of_every_oddity(zipped, protocol, tmp_path):
    module = Odd()
    torch.save(module, tmp_path / "m.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = read_pickled(tmp_path / "m.pt")
    assert_same_state(found.state, module.state_dict())
    assert found.source == "a module of class tests.formats.test_pickled.Odd"
    assert found.state["again.weight"] is found.state["parts.0.weight"]  # tied stays tied


@FORMATS
def test_an_image_encoder_of_the_field_whose_classes_are_gone(zipped, tmp_path, monkeypatch):
    package, modeling = types.ModuleType("src"), types.ModuleType("src.modeling")
    monkeypatch.setitem(sys.modules, "src", package)
    monkeypatch.setitem(sys.modules, "src.modeling", modeling)

    class ImageEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = models.open_clip_model()
            del self.model.transformer
            self.cache_dir = None

    ImageEncoder.__module__, ImageEncoder.__qualname__ = "src.modeling", "ImageEncoder"
    modeling.ImageEncoder = ImageEncoder
    encoder = ImageEncoder()
    expected = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    save(encoder, tmp_path / "finetuned.pt", zipped)
    monkeypatch.delitem(sys.modules, "src.modeling")
    monkeypatch.delitem(sys.modules, "src")
    found = read_pickled(tmp_path / "finetuned.pt")
    assert_same_state(found.state, expected)
    assert "src.modeling" not in sys.modules
    assert found.source == "a module of class src.modeling.ImageEncoder"


@FORMATS
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
)
def test_every_dtype(zipped, dtype, tmp_path):
    state = {"a": torch.randn(3, 4).mul(3).to(dtype), "b": torch.zeros((), dtype=dtype)}
    save(state, tmp_path / "s.pt", zipped)
    assert_same_state(read_pickled(tmp_path / "s.pt").state, state)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16])
def test_dtypes_that_have_no_storage_class(dtype, tmp_path):
    state = {"a": torch.arange(6).to(dtype).view(2, 3)}
    torch.save(state, tmp_path / "s.pt")
    assert_same_state(read_pickled(tmp_path / "s.pt").state, state)


@FORMATS
def test_views_share_their_storage(zipped, tmp_path):
    base = torch.randn(6, 4)
    state = {"whole": base, "rows": base[2:4], "turned": base.t(), "steps": base[::2, 1::2], "same": base}
    save(state, tmp_path / "s.pt", zipped)
    found = read_pickled(tmp_path / "s.pt").state
    assert_same_state(found, state)
    assert found["rows"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


@FORMATS
def test_entries_and_keys(zipped, tmp_path):
    linear = nn.Linear(2, 2)
    save(
        {"epoch": 3, "teacher": linear, "student": linear.state_dict(), "optimizer": {"state": {}}},
        tmp_path / "c.pt",
        zipped,
    )
    with pytest.raises(CheckpointError, match="several models, 'teacher', 'student': choose one"):
        read_pickled(tmp_path / "c.pt")
    assert_same_state(read_pickled(tmp_path / "c.pt", key="teacher").state, linear.state_dict())
    with pytest.raises(CheckpointError, match="no entry 'ema'; its entries: 'epoch', 'teacher'"):
        read_pickled(tmp_path / "c.pt", key="ema")
    save(
        {"epoch": 3, "model": linear, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        tmp_path / "d.pt",
        zipped,
    )
    found = read_pickled(tmp_path / "d.pt")
    assert found.source == "the entry 'model': a module of class torch.nn.modules.linear.Linear"
    assert found.skipped == ("entry 'epoch'", "entry 'optimizer'")


def test_files_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "s.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_pickled(tmp_path / "s.pt").state["a"], torch.ones(3))


def test_peeking_gives_shapes_without_reading(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "m.pt")
    found = peek_pickled(tmp_path / "m.pt")
    assert found.is_module and found.tensors["weight"].shape == (2, 3) and found.tensors["weight"].nbytes == 24


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: cannot be read \(No such file"):
        read_pickled(tmp_path / "nowhere.pt")
