"""Files that want something run, or memory, or time: refused or read inertly; the canary never sings."""

import faulthandler
import subprocess
import sys

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.pickled import read_pickled
from tests.formats import canary
from tests.formats.assembler import archive, dct, legacy, module, number, tensor, text
from tests.formats.hostile import hostile_files, hostile_pickles, payloads

CANARY = "canary_fired"
W = torch.tensor([1.0, 2.0, 3.0, 4.0])
PAYLOADS = payloads(CANARY)
PICKLES = dict(hostile_pickles())
FILES = dict(hostile_files())


@pytest.fixture(autouse=True)
def cage(tmp_path, monkeypatch):
    """Run in an empty directory, stop a hang, and see that nothing was run or left behind."""
    monkeypatch.chdir(tmp_path)
    faulthandler.dump_traceback_later(60, exit=True)
    modules = set(sys.modules)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert not canary.SUNG
    assert {p.name for p in tmp_path.iterdir()} <= {"file.pt"}
    assert not {
        m for m in set(sys.modules) - modules if m.partition(".")[0] in ("src", "runpy", "webbrowser", "marshal")
    }


def refused(path, content):
    path.write_bytes(content)
    for read in (read_pickled, ta.load_state_dict):
        with pytest.raises(CheckpointError) as error:
            read(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 400


def test_the_corpus_is_large():
    assert len(PAYLOADS) >= 40 and len(PICKLES) + len(FILES) >= 100


@pytest.mark.parametrize("label", PAYLOADS)
def test_what_wants_to_run_is_read_as_data_beside_the_tensors(label, tmp_path):
    path = tmp_path / "file.pt"
    beside_tensors = dct({"w": tensor(), "x": PAYLOADS[label]})
    in_a_module = module(more={"x": PAYLOADS[label]})
    for body in (beside_tensors, in_a_module):
        for content in (archive(body), legacy(body)):
            path.write_bytes(content)
            assert torch.equal(read_pickled(path).state["w"], W)


@pytest.mark.parametrize("label", PAYLOADS)
def test_what_wants_to_run_is_refused_in_place_of_a_tensor(label, tmp_path):
    if label == "parameter_state":
        pytest.skip("its value is a tensor; the state beside it is what wants to run")
    refused(tmp_path / "file.pt", archive(PAYLOADS[label]))
    refused(tmp_path / "file.pt", archive(module(dct({"w": PAYLOADS[label]}))))


SLOW = ("too_many_opcodes", "exponential_modules", "argument_list_reused")


@pytest.mark.parametrize("label", PICKLES)
@pytest.mark.parametrize("container", [archive, legacy])
def test_malformed_lying_and_endless_pickles_are_refused(label, container, tmp_path):
    if container is legacy and label in (
        "storage_absent",
        "storage_key_climbs",
        "storage_larger",
        "storage_huge",
    ):
        pytest.skip("a legacy file has no member of that name to hold the claim against")
    if container is legacy and label in SLOW:
        pytest.skip("the same machine reads it, and it takes a second or two")
    refused(tmp_path / "file.pt", container(PICKLES[label]))


@pytest.mark.parametrize("label", FILES)
def test_damaged_and_foreign_files_are_refused(label, tmp_path):
    refused(tmp_path / "file.pt", FILES[label])


def test_every_truncation_of_a_good_file_is_refused(tmp_path):
    for good in (archive(dct({"w": tensor()})), legacy()):
        for length in range(len(good)):
            (tmp_path / "file.pt").write_bytes(good[:length])
            with pytest.raises(CheckpointError):
                read_pickled(tmp_path / "file.pt")


def test_state_of_a_module_with_integer_and_exotic_keys_is_read(tmp_path):
    body = dct({"w": tensor()})[:-1] + number(3) + text("three") + b")" + text("tuple") + b"u"
    (tmp_path / "file.pt").write_bytes(archive(body))
    found = read_pickled(tmp_path / "file.pt")
    assert list(found.state) == ["w"] and found.skipped == ("entry 3", "entry a Stub")


LIMIT = """
import resource, sys, pathlib, torch
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.pickled import read_pickled
torch.zeros(10).sum()
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000,) * 2)
for path in sys.argv[1:]:
    try:
        read_pickled(path)
    except CheckpointError:
        continue
    sys.exit(f"{path} was read")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_bombs_take_little_memory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    bombs = {n: archive(b) for n, b in PICKLES.items() if n.startswith(("expanded", "expon", "too_many", "argument"))}
    bombs |= {n: archive(b) for n, b in PICKLES.items() if n.endswith(("_end", "_huge"))}
    bombs |= {n: FILES[n] for n in ("zip_bomb", "directory_huge", "member_larger_than_the_file")}
    for label, content in bombs.items():
        (folder / f"{label}.pt").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LIMIT, *map(str, sorted(folder.iterdir()))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
