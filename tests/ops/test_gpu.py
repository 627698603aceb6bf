"""What only a GPU can show: graphs, streams, synchronisation, repeated bytes, addresses beyond 2^31 elements."""

import os

import pytest
import torch

from taskarith_fast.ops.weighted_sum import OP as WEIGHTED_SUM
from tests.ops.cases import all_cases, listed, on_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KERNELS = [
    pytest.param(case, backend, id=f"{case.op.name}-{backend}")
    for case in all_cases()
    for backend in ("cuda", "triton")
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" and case.op.absent(backend) is None
    if not case.op.composed  # of torch's operators, among them decompositions, which wait for the device
]


def _first(case):
    return on_device("cuda", next(iter(case.samples.values()))(torch.float32))


def _equal(ours, theirs):
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(ours, theirs, strict=True))


def _bytes(out):
    return [o.reshape(-1).view(torch.uint8).clone() for o in listed(out)]


@pytest.mark.parametrize(("case", "backend"), KERNELS)
def test_a_captured_graph_gives_the_same_bytes(case, backend):
    args = _first(case)
    expected = _bytes(case.op(*args, backend=backend))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = listed(case.op(*args, backend=backend))
    for o in out:
        o.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert _equal(_bytes(out), expected)


@pytest.mark.parametrize(("case", "backend"), KERNELS)
def test_the_host_never_waits_for_the_device(case, backend):
    args = _first(case)
    case.op(*args, backend=backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.op(*args, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("case", "backend"), KERNELS)
def test_another_stream_gives_the_same_bytes_twenty_times(case, backend):
    args = _first(case)
    expected = _bytes(case.op(*args, backend=backend))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outs = [_bytes(case.op(*args, backend=backend)) for _ in range(20)]
    stream.synchronize()
    assert all(_equal(out, expected) for out in outs)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_elements_beyond_two_to_the_31_are_reached(backend):
    free, _ = torch.cuda.mem_get_info()
    numel = 2**31 + 4099
    if WEIGHTED_SUM.absent(backend):
        pytest.skip(WEIGHTED_SUM.absent(backend))
    if free < 8 * numel:
        pytest.skip(f"needs {8 * numel / 2**30:.0f} GiB of GPU memory")
    base = torch.zeros(numel, dtype=torch.bfloat16, device="cuda")
    finetuned = torch.full_like(base, 2.0)
    weights = torch.full((1, 1), 0.5, dtype=torch.float64, device="cuda")
    (out,) = WEIGHTED_SUM([base], [finetuned], weights, backend=backend)
    assert bool((out == 1).all())
