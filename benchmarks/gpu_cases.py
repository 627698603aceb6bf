"""Cases for GPUs: the operators at the sizes of ViT-L/14, float32 and bfloat16, against torch and torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import costs, gradient_cases, op_cases, shapes, sparse_cases, tangent_cases
from benchmarks.contest import CUDA, Case, Contest
from taskarith_fast import ops
from taskarith_fast.ops.dual_gelu import OP as DUAL_GELU
from taskarith_fast.ops.dual_gelu import dual_gelu_reference
from taskarith_fast.ops.dual_glu import OP as DUAL_GLU
from taskarith_fast.ops.dual_glu import dual_glu_reference
from taskarith_fast.ops.dual_layer_norm import OP as DUAL_LAYER_NORM
from taskarith_fast.ops.dual_layer_norm import dual_layer_norm_reference

MATRICES = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)] * 24  # of ViT-L/14
ROWS = (32, 257)  # images, tokens


def flat_weighted_sum(numel: int = 304_000_000, tasks: int = 8) -> Contest:
    """Task arithmetic on one tensor, the form that torch.compile fuses best."""
    (base,), finetuned = shapes.models([(numel,)], tasks)
    flat = [model[0] for model in finetuned]
    scale = torch.full((tasks,), 0.3)
    compiled = torch.compile(_axpy)
    compiled(base, flat)  # compiles, which no figure is to hold
    return Contest(
        ours={"taskarith_fast": lambda: ops.weighted_sum([base], finetuned, scale)},
        baselines={"torch.compile": lambda: compiled(base, flat)},
        bytes_moved=costs.merge_bytes(numel, tasks),
    )


def _axpy(base: Tensor, finetuned: list[Tensor]) -> Tensor:
    total = base.double()
    for x in finetuned:
        total = total + 0.3 * (x - base).double()
    return total.float()


def bottom_k(layers: list[tuple[int, int]] = MATRICES) -> Contest:
    """The lowest tenth of 302 M scores over 96 tensors, against one torch.topk over all of them and a mask."""
    scores = [torch.rand(s, generator=shapes.generator(i)) for i, s in enumerate(layers)]
    numel = sum(s.numel() for s in scores)
    k = numel // 10

    def topk() -> list[Tensor]:
        flat = torch.cat([s.flatten() for s in scores])
        mask = torch.zeros(numel, dtype=torch.bool, device=flat.device)
        mask[flat.topk(k, largest=False, sorted=False).indices] = True
        return ops.pack_bits(list(mask.split([s.numel() for s in scores])))

    return Contest(
        ours={"taskarith_fast": lambda: ops.bottom_k_mask(scores, k)},
        baselines={"torch.topk": topk},
        bytes_moved=int(numel * (2 * costs.FLOAT + 1 / 8)),
    )


def lowrank_sum(layers: list[tuple[int, int]] = MATRICES[:4], tasks: int = 8) -> Contest:
    """CART's sum for one block of ViT-L/14 at 8 % of full rank: torch's products, Triton's, and gesvd one by one."""
    base, finetuned = shapes.models(layers, tasks)
    ranks = [max(1, int(0.08 * min(s))) for s in layers]

    def one_by_one() -> list[Tensor]:
        deltas = ([x - b for x, b in zip(model, base, strict=True)] for model in finetuned)
        return op_cases.sum_of_svds(base, deltas, ranks)

    return Contest(
        ours={
            "taskarith_fast": lambda: ops.lowrank_sum(base, finetuned, ranks),
            "Triton's products": lambda: ops.lowrank_sum(base, finetuned, ranks, backend="triton"),
        },
        baselines={"gesvd of each matrix": one_by_one},
        flops=tasks * sum(costs.lowrank_flops(*s, rank) for s, rank in zip(layers, ranks, strict=True)),
    )


def glu(dtype: torch.dtype, rows: tuple[int, int] = ROWS) -> Contest:
    """dy of gated GELU units over a hidden layer of 4096; y is torch's own and not in the figure."""
    a, da, b, db = (torch.randn(*rows, 4096).to(dtype) for _ in range(4))
    return Contest(
        ours={"taskarith_fast": lambda: DUAL_GLU(a, da, b, db, "gelu_tanh")},
        baselines=_eager_and_compiled(lambda: dual_glu_reference(a, da, b, db, "gelu_tanh")),
        bytes_moved=5 * a.element_size() * a.numel(),
    )


def layer_norm(dtype: torch.dtype, rows: tuple[int, int] = ROWS) -> Contest:
    """dy of a LayerNorm over ViT-L/14's width; y is torch's own and not in the figure."""
    x, dx = (torch.randn(*rows, 1024).to(dtype) for _ in range(2))
    w, dw, db = (torch.randn(1024).to(dtype) for _ in range(3))
    args = (x, dx, w, dw, db, 1e-5, True)
    return Contest(
        ours={"taskarith_fast": lambda: DUAL_LAYER_NORM(*args)},
        baselines=_eager_and_compiled(lambda: dual_layer_norm_reference(*args)),
        bytes_moved=3 * x.element_size() * x.numel(),
    )


def gelu(dtype: torch.dtype, rows: tuple[int, int] = ROWS) -> Contest:
    """dy of the erf GELU over ViT-L/14's hidden layer; y is torch's own and not in the figure."""
    x, dx = (torch.randn(*rows, 4096).to(dtype) for _ in range(2))
    return Contest(
        ours={"taskarith_fast": lambda: DUAL_GELU(x, dx, "none")},
        baselines=_eager_and_compiled(lambda: dual_gelu_reference(x, dx, "none")),
        bytes_moved=3 * x.element_size() * x.numel(),
    )


def linear(dtype: torch.dtype, rows: tuple[int, int] = ROWS, width: int = 1024) -> Contest:
    """y and dy of ViT-L/14's first MLP layer, against the three products one by one."""
    x, dx = (torch.randn(*rows, width).to(dtype) for _ in range(2))
    w, dw = (torch.randn(4 * width, width).mul_(0.03).to(dtype) for _ in range(2))
    b, db = (torch.randn(4 * width).to(dtype) for _ in range(2))

    def three_products() -> tuple[Tensor, Tensor]:
        return F.linear(x, w, b), F.linear(dx, w) + F.linear(x, dw, db)

    return Contest(
        ours={"taskarith_fast": lambda: ops.dual_linear(x, dx, w, b, dw, db)},
        baselines={"three products (torch)": three_products},
        flops=costs.dual_linear_flops(rows[0] * rows[1], 4 * width, width),
    )


def _eager_and_compiled(run: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
    compiled = torch.compile(run)
    if torch.get_default_device().type != "cpu":
        compiled()  # compiles, which no figure is to hold
    return {"reference (torch)": run, "torch.compile of the reference": compiled}


def _merges() -> list[Case]:
    layers = shapes.vit_l14_shapes()
    builds: dict[str, Callable[[], Contest]] = {
        "weighted_sum": lambda: op_cases.weighted_sum(layers, 8),
        "ties_merge": lambda: op_cases.ties(layers, 8),
        "dare": lambda: op_cases.dare(layers),
        "breadcrumbs": lambda: op_cases.breadcrumbs(layers),
        "tall_mask": lambda: op_cases.tall_mask(layers),
        "consensus": lambda: op_cases.consensus(layers),
        "weighted_sum_backward": lambda: op_cases.weighted_sum_backward(layers),
    }
    return [Case(f"{op}/vit_l14x8", op, build, devices=CUDA) for op, build in builds.items()]


def _by_dtype(name: str, op: str, build: Callable[[torch.dtype], Contest]) -> list[Case]:
    return [
        Case(f"{name}_{kind}", op, lambda dtype=dtype: build(dtype), devices=CUDA)  # type: ignore[misc]
        for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    ]


def _mlp(dtype: torch.dtype) -> gradient_cases.Layer:
    return gradient_cases.Layer(*ROWS, outputs=4096, inputs=1024, dtype=dtype)


CASES = [
    *_merges(),
    Case("weighted_sum/one_tensor_x8", "weighted_sum", flat_weighted_sum, devices=CUDA),
    Case("lowrank_sum/vit_l14_block_x8", "lowrank_sum", lowrank_sum, devices=CUDA),
    Case("bottom_k_mask/vit_l14", "bottom_k_mask", bottom_k, devices=CUDA),
    *[
        Case(
            f"sparse_adamw_step_/vit_l14_{'rows' if rows else 'random'}_{density}",
            "sparse_adamw_step_",
            lambda density=density, rows=rows: sparse_cases.adamw_step(density, rows, MATRICES),  # type: ignore[misc]
            devices=CUDA,
        )
        for density, rows in ((0.1, False), (0.01, False), (0.1, True))
    ],
    *_by_dtype("fisher_diag_/vit_l14_mlp", "fisher_diag_", lambda dtype: gradient_cases.fisher(_mlp(dtype))),
    *_by_dtype(
        "masked_wgrad_/vit_l14_mlp_random_0.1",
        "masked_wgrad_",
        lambda dtype: gradient_cases.masked(0.1, layer=_mlp(dtype)),
    ),
    *_by_dtype(
        "masked_wgrad_/vit_l14_mlp_rows_0.1",
        "masked_wgrad_",
        lambda dtype: gradient_cases.masked(0.1, True, _mlp(dtype)),
    ),
    *_by_dtype(
        "masked_wgrad_adamw_step_/vit_l14_mlp_random_0.1",
        "masked_wgrad_adamw_step_",
        lambda dtype: gradient_cases.masked_step(0.1, _mlp(dtype)),
    ),
    *_by_dtype("dual_linear/vit_l14_mlp", "dual_linear", linear),
    *_by_dtype("dual_layer_norm/vit_l14", "dual_layer_norm", layer_norm),
    *_by_dtype("dual_gelu/vit_l14_mlp", "dual_gelu", gelu),
    *_by_dtype("dual_glu/hidden_4096", "dual_glu", glu),
    *_by_dtype(
        "dual_attention/vit_l14", "dual_attention", lambda dtype: tangent_cases.dual_attention(257, 32, 16, dtype)
    ),
    Case("linearized_step/vit_b32", "", lambda: tangent_cases.linearized_step(12, 128), devices=CUDA),
]
