"""Hashes begun in processes of their own are those of the files that are merged."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

import taskarith_fast as ta
from taskarith_fast import hashing
from taskarith_fast.hashing import BegunHashes


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "_LEAST", 0)
    for t in range(3):
        save_file({"w": torch.full((5, 7), float(t))}, tmp_path / f"m{t}.safetensors")
    (tmp_path / "shards").mkdir()
    save_file({"w": torch.ones(5, 7)}, tmp_path / "shards" / "model-1.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "shards" / "model-2.safetensors")
    return [tmp_path / f"m{t}.safetensors" for t in range(3)]


def test_files_and_directories_are_hashed(paths, tmp_path):
    shards = tuple(sorted((tmp_path / "shards").iterdir()))
    with BegunHashes([*paths, paths[1], tmp_path / "shards"]) as begun:
        for files in (*((path,) for path in paths), shards):
            assert begun.has(files)
            assert begun.result(files) == hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
        assert not begun.has((tmp_path / "other",))


def test_a_file_that_changed_since_has_no_hash(paths):
    with BegunHashes(paths) as begun:
        begun.result((paths[0],))
        save_file({"w": torch.zeros(9)}, paths[1])
        paths[2].unlink()
        assert begun.result((paths[0],)) is not None
        assert begun.result((paths[1],)) is None and begun.result((paths[2],)) is None


def test_absent_or_small_files_are_left_to_others(paths, tmp_path, monkeypatch):
    assert not BegunHashes([*paths, tmp_path / "nowhere.safetensors"]).has((paths[0],))
    monkeypatch.setattr(hashing, "_LEAST", 1 << 20)
    assert not BegunHashes(paths).has((paths[0],))


def test_a_merge_takes_hashes_that_have_begun(paths, tmp_path):
    expected = ta.merge_files(paths[0], paths[1:], tmp_path / "a.safetensors")
    with BegunHashes(paths[:2]) as begun:
        assert ta.merge_files(paths[0], paths[1:], tmp_path / "b.safetensors", hash_inputs=begun) == expected
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
