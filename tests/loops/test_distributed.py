"""Several processes: the result is that of one, to rounding, and the same bytes in each of them."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taskarith_fast.checkpoint import load_state_dict
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.combination import check_combination
from taskarith_fast.loops.distributed import World, joined
from tests.loops.together import CASES, tensors, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.loops.together"]
    done = subprocess.run(
        [sys.executable, *words, str(folder), *CASES],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    return folder


def _both(folder, case):
    return [dict(load_state_dict(folder / f"{case}-{rank}.safetensors")) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_what_one_gives_and_agree_to_the_bit(case, folder):
    first, second = _both(folder, case)
    alone = tensors(train(dataclasses.replace(CASES[case], sharding="none")))
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, atol=3e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_resume_with_the_same_bytes(folder):
    resumed, whole = _both(folder, "resumed"), _both(folder, "qkvo")
    for name, tensor in whole[0].items():
        assert torch.equal(resumed[0][name], tensor) and torch.equal(resumed[1][name], tensor), name


def test_the_parts_of_a_batch_add_up():
    for images in range(1, 9):
        assert sum(World(rank, 3, torch.device("cpu")).part(images) for rank in range(3)) == images


def test_a_process_group_of_ours_is_closed_and_one_of_the_caller_is_left_open(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "RANK": "0",
            "WORLD_SIZE": "1",
        }
    for name, value in address.items():
        monkeypatch.setenv(name, value)
    with joined("cpu") as world:
        assert (world.rank, world.size) == (0, 1) and not torch.distributed.is_initialized()
    torch.distributed.init_process_group("gloo")
    try:
        with joined("cpu") as world:
            assert world.size == 1
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_sharding_needs_several_processes_and_whole_tensors(tmp_path):
    sharded = dataclasses.replace(CASES["qkvo"], sharding="fsdp")
    with pytest.raises(ArgumentError, match="sharding 'fsdp' needs several processes, got one; start the run with"):
        train(sharded)
    two = World(0, 2, torch.device("cpu"))
    with pytest.raises(
        ArgumentError, match="needs a recipe that trains whole tensors, got 'lora'; try sharding 'none'"
    ):
        check_combination(dataclasses.replace(sharded, recipe="lora"), None, None, two)
    with pytest.raises(ArgumentError, match="checkpoint must be None for sharding 'fsdp', which cannot resume yet"):
        check_combination(sharded, None, tmp_path / "run.resume", two)
