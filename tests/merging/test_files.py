"""Files in, file out: what is recorded, and that nothing is written on an error."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import taskarith_fast as ta
from taskarith_fast.errors import CheckpointError


@pytest.fixture
def files(tmp_path):
    g = torch.Generator().manual_seed(0)
    paths = []
    for name in ("base", "a", "b"):
        paths.append(tmp_path / f"{name}.safetensors")
        save_file({"w": torch.randn(5, 7, generator=g), "n": torch.tensor(4)}, paths[-1])
    return paths


def test_the_file_equals_the_merge_in_memory_and_names_its_inputs(files, tmp_path):
    out = tmp_path / "out.safetensors"
    report = ta.merge_files(files[0], files[1:], out, method="ties", density=0.5)
    states = [load_file(f) for f in files]
    expected = ta.merge(states[0], states[1:], "ties", density=0.5)
    assert all(torch.equal(v, expected[k]) for k, v in load_file(out).items())
    with safe_open(out, "pt") as handle:
        stored = json.loads(handle.metadata()["taskarith"])
    assert stored == report and stored["parameters"]["density"] == 0.5 and stored["parameters"]["elect"] == "mass"
    assert stored["base"] == {"name": "base.safetensors", "sha256": hashlib.sha256(files[0].read_bytes()).hexdigest()}
    assert str(tmp_path) not in json.dumps(stored)


def test_an_existing_output_is_kept_unless_told_otherwise(files, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists already"):
        ta.merge_files(files[0], files[1:], out)
    assert out.read_bytes() == b"mine"
    ta.merge_files(files[0], files[1:], out, overwrite=True)
    assert len(load_file(out)) == 2


@pytest.mark.parametrize("damage", ["truncate", "text", "missing", "empty"])
def test_a_damaged_input_writes_nothing(damage, files, tmp_path):
    data = files[1].read_bytes()
    if damage == "missing":
        files[1].unlink()
    else:
        files[1].write_bytes({"truncate": data[:-9], "text": b"hello, this is no checkpoint", "empty": b""}[damage])
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"a\.safetensors") as error:
        ta.merge_files(files[0], files[1:], tmp_path / "out.safetensors")
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
