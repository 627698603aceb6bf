"""Cases of language models: a linearized step and a Fisher pass of T5-Small, gated units with their tangents."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contest import Case, Contest
from taskarith_fast import ops
from taskarith_fast.loops.fisher import fisher_diagonal
from taskarith_fast.models import load_language_model
from taskarith_fast.models.maskable import maskable_names
from taskarith_fast.ops.linear import linear_route
from taskarith_fast.tangent import linearize

TOKENS, CHOICES, ANSWER = 128, 4, 4


def _t5(depth: int, batch: int, newer: bool = False) -> tuple[Any, dict[str, Tensor], int]:
    """T5-Small's first blocks with random weights, texts of 128 tokens with 4 answers of 4, operations of a forward."""
    torch.manual_seed(0)
    name = "google/t5-v1_1-small" if newer else "google-t5/t5-small"
    model = load_language_model(f"t5:{name}", pretrained=False, depth=depth).eval()
    shape = {"input_ids": (batch, TOKENS), "answers": (batch, CHOICES, ANSWER)}
    texts = {name: torch.randint(2, model.vocab_size, size) for name, size in shape.items()}
    encoder, decoder = (sum(p.numel() for p in stack.block.parameters()) for stack in (model.encoder, model.decoder))
    rows = CHOICES * ANSWER
    return model, texts, 2 * batch * (TOKENS * encoder + rows * (decoder + model.lm_head.weight.numel()))


def linearized_step(depth: int = 6, batch: int = 4, *, newer: bool = False) -> Contest:
    """Forward and backward of tau, of all parameters but the embeddings, against ordinary steps and torch.func.jvp."""
    model, texts, forward = _t5(depth, batch, newer)
    names = maskable_names(name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    labels = torch.zeros(batch, dtype=torch.long)
    lin, jvp = linearize(model, names=names), linearize(model, names=names, fallback="jvp")
    jvp._walks = False

    def step_of(module: nn.Module, route: str = "auto") -> Callable[[], Any]:
        parameters = [p for p in module.parameters() if p.requires_grad]

        def step() -> None:
            with linear_route(route):
                F.cross_entropy(module(**texts), labels).backward()
            for parameter in parameters:
                parameter.grad = None

        return step

    return Contest(
        ours={"taskarith_fast": step_of(lin)},
        baselines={
            "ordinary step, torch's products": step_of(copy.deepcopy(model), "linear"),
            "ordinary step, same products": step_of(model),
            "torch.func.jvp": step_of(jvp),
        },
        flops=5 * forward,
    )


def fisher_pass(depth: int = 6, batch: int = 4) -> Contest:
    """The squares of one batch's per-sample gradients, against one text at a time."""
    model, texts, forward = _t5(depth, batch)
    names = maskable_names(name for name, _ in model.named_parameters())
    weights = [model.get_parameter(name) for name in names]

    def one_by_one() -> list[Tensor]:
        squares = [torch.zeros_like(w) for w in weights]
        for b in range(batch):
            logits = model(**{name: x[b : b + 1] for name, x in texts.items()})
            y = torch.distributions.Categorical(logits=logits.detach()).sample()
            gradients = torch.autograd.grad(F.log_softmax(logits, -1)[0, y].sum(), weights)
            torch._foreach_addcmul_(squares, gradients, gradients)
        return squares

    return Contest(
        ours={"taskarith_fast": lambda: fisher_diagonal(model, [texts], labels="sampled", names=names)},
        baselines={"one text at a time": one_by_one},
        flops=3 * forward,
    )


def dual_glu(rows: int = 1024, width: int = 2816) -> Contest:
    """dy of T5-Large 1.1's gated units, against the formula in torch's functions."""
    a, da, b, db = (torch.randn(rows, width) for _ in range(4))

    def dense() -> Tensor:
        slope = torch.ops.aten.gelu_backward(da, a, approximate="tanh")
        return (slope * b).addcmul_(F.gelu(a, approximate="tanh"), db)

    return Contest(
        ours={"taskarith_fast": lambda: ops.dual_glu(a, da, b, db, form="gelu_tanh")},
        baselines={"torch": lambda: (F.gelu(a, approximate="tanh") * b, dense())},
        bytes_moved=6 * a.numel() * 4,
    )


CASES = [
    Case("dual_glu/t5_v1_1_large", "dual_glu", dual_glu, bars={"torch": 1}),
    Case("linearized_step/t5_small", "", linearized_step, bars={"ordinary step, same products": 1 / 1.9}),
    Case(
        "linearized_step/t5_v1_1_small",
        "",
        lambda: linearized_step(8, newer=True),
        bars={"ordinary step, same products": 1 / 1.9},
    ),
    Case("fisher_pass/t5_small", "fisher_diag_", fisher_pass, bars={"one text at a time": 1}),
]
