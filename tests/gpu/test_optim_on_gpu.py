"""The sparse optimizers on a GPU: the processor's weights, steps without waiting, captured graphs that count on."""

import pytest
import torch

import taskarith_fast as ta

OPTIMIZERS = {
    "adamw": (ta.SparseAdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (ta.SparseSGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.5}),
}
BOTH = pytest.mark.parametrize("kind", OPTIMIZERS)


def _trained(kind, device, dtype=torch.float32, **options):
    """Three tensors whose entries are selected at random, in runs and all of them, and their optimizer."""
    g = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 301), "b": (97, 64), "c": (5,)}
    masks = {
        "a": torch.rand(shapes["a"], generator=g) < 0.1,
        "b": (torch.rand(97, 1, generator=g) < 0.3).expand(97, 64).contiguous(),
        "c": torch.ones(5, dtype=torch.bool),
    }
    named = {n: torch.nn.Parameter(torch.randn(s, generator=g).to(device, dtype)) for n, s in shapes.items()}
    sparse, defaults = OPTIMIZERS[kind]
    return named, sparse(named.items(), ta.Masks.pack(masks), **defaults, **options)


def _set_gradients(named, step):
    g = torch.Generator().manual_seed(step)
    for p in named.values():
        grad = torch.randn(p.shape, generator=g).to(p)
        p.grad = grad if p.grad is None else p.grad.copy_(grad)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_processor(kind, dtype):
    (there, a), (here, b) = _trained(kind, "cuda", dtype), _trained(kind, "cpu", dtype)
    for step in range(5):
        for named, optimizer in ((there, a), (here, b)):
            _set_gradients(named, step)
            optimizer.clip_grad_norm_(3.0)
            optimizer.step()
    for name, p in here.items():
        torch.testing.assert_close(there[name].cpu(), p, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


@BOTH
def test_a_step_never_waits_for_the_gpu(kind):
    named, optimizer = _trained(kind, "cuda")
    _set_gradients(named, 0)
    optimizer.step()
    optimizer.found_inf = torch.zeros(1, device="cuda")
    optimizer.grad_scale = torch.ones(1, device="cuda")
    optimizer.step()  # moves the count of skipped steps to the GPU
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@BOTH
def test_a_captured_step_counts_on(kind):
    (captured, a), (eager, b) = _trained(kind, "cuda"), _trained(kind, "cuda")
    for named, optimizer in ((captured, a), (eager, b)):
        _set_gradients(named, 0)
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        a.step()
    for step in range(1, 6):
        _set_gradients(captured, step)
        graph.replay()
        _set_gradients(eager, step)
        b.step()
    for name, p in eager.items():
        assert torch.equal(captured[name], p)


@BOTH
def test_steps_that_a_scaler_forbids_are_skipped_and_counted(kind):
    (named, optimizer), (twin, other) = _trained(kind, "cuda"), _trained(kind, "cuda")
    for step, forbidden in enumerate((0.0, 1.0, 0.0, 1.0)):
        _set_gradients(named, step)
        optimizer.found_inf = torch.full((), forbidden, device="cuda")
        optimizer.grad_scale = torch.full((), 2.0, device="cuda")
        optimizer.step()
        if not forbidden:
            _set_gradients(twin, step)
            other.grad_scale = optimizer.grad_scale
            other.found_inf = optimizer.found_inf
            other.step()
    assert optimizer.skipped_steps == 2 and other.skipped_steps == 0
    for name, p in twin.items():
        assert torch.equal(named[name], p) and optimizer.state[named[name]]["step"] == 2
