"""Mutated files: a typed error or a state, never anything else, never a hang, never a call."""

import faulthandler

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.archive import Archive
from taskarith_fast.formats.pickled import read_pickled
from tests.formats import canary
from tests.formats.assembler import archive, legacy
from tests.formats.hostile import payloads


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.same = self.linear


@pytest.fixture(scope="module")
def goods(tmp_path_factory):
    """A good file of each container, and the pickle inside one."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    files = []
    for zipped in (True, False):
        torch.save(Small(), folder / "m.pt", _use_new_zipfile_serialization=zipped)
        files.append((folder / "m.pt").read_bytes())
    assert files[0].startswith(b"PK") and files[1].startswith(b"\x80")
    return files


def mutations(size):
    place = st.integers(0, size - 1)
    flip = st.tuples(st.just("set"), place, st.integers(0, 255))
    cut = st.tuples(st.just("cut"), place, st.integers(1, 40))
    copy = st.tuples(st.just("copy"), place, place)
    insert = st.tuples(st.just("insert"), place, st.sampled_from([*payloads("canary_fired").values()]))
    return st.lists(st.one_of(flip, flip, cut, copy, insert), min_size=1, max_size=6)


def mutate(data, changes):
    data = bytearray(data)
    for kind, place, value in changes:
        place %= max(1, len(data))
        if kind == "set" and data:
            data[place] = value
        elif kind == "cut":
            del data[place : place + value]
        elif kind == "copy":
            data[place:place] = data[value : value + 30]
        elif kind == "insert":
            data[place:place] = value[:2000]
    return bytes(data)


def attempt(path, data):
    path.write_bytes(data)
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        state = read_pickled(path).state
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(name, str) and tensor.numel() >= 0 for name, tensor in state.items())
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert not canary.SUNG


def check(goods, tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("fuzz") / "file.pt"
    inside = Archive(memoryview(goods[0]))
    pickled = bytes(inside.read("m/data.pkl"))
    storages = {name[7:]: bytes(inside.read(name)) for name in inside.members if name.startswith("m/data/")}
    assert len(storages) > 5

    def wrap(data):
        return archive(data, storages)

    attempt(path, wrap(pickled))
    targets = [
        (goods[0], lambda data: data),
        (goods[1], lambda data: data),
        (pickled, wrap),
        (legacy(), lambda data: data),
    ]
    for good, container in targets:

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(mutations(len(good)))
        def run(changes):
            attempt(path, container(mutate(good, changes)))  # noqa: B023

        run()


def test_mutated_files_give_typed_errors(goods, tmp_path_factory, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check(goods, tmp_path_factory, 150)
    assert not (tmp_path / "canary_fired").exists()


@pytest.mark.slow
def test_many_mutated_files_give_typed_errors(goods, tmp_path_factory, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check(goods, tmp_path_factory, 5000)
    assert not (tmp_path / "canary_fired").exists()


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_random_bytes_as_a_pickle_give_typed_errors(tmp_path_factory, data):
    attempt(tmp_path_factory.getbasetemp() / "random.pt", archive(b"\x80\x04" + data + b"."))
