"""The one table of cases. A case is an operator or a loop on a named model, its baselines, and its floor."""

from __future__ import annotations

from benchmarks import (
    adamerge_cases,
    analysis_cases,
    calibrate_cases,
    gpu_cases,
    gradient_cases,
    language_cases,
    loop_cases,
    op_cases,
    shapes,
    sparse_cases,
    sparse_loop_cases,
    stream_cases,
    sweep_cases,
    tangent_cases,
)
from benchmarks.contest import Case


def _block() -> list[tuple[int, ...]]:
    return [*shapes.vit_b32_matrices(1)]


CASES = [
    Case("weighted_sum/vit_b32x8", "weighted_sum", lambda: op_cases.weighted_sum(shapes.vit_b32_shapes(), 8)),
    Case("weighted_sum/vit_b32_block_x8", "weighted_sum", lambda: op_cases.weighted_sum(_block(), 8), quick=True),
    Case(
        "ties_merge/vit_b32x8",
        "ties_merge",
        lambda: op_cases.ties(shapes.vit_b32_shapes(), 8),
        bars={"published recipe (torch)": 60, "numpy, two threads": 4},
    ),
    Case("ties_merge/vit_b32_block_x8", "ties_merge", lambda: op_cases.ties(_block(), 8), quick=True),
    Case(
        "lowrank_sum/vit_b32_block_x8",
        "lowrank_sum",
        lambda: op_cases.lowrank_sum("flat"),
        bars={"torch.linalg.svd": 8},
        quick=True,
    ),
    Case("lowrank_sum/spiked_block_x8", "lowrank_sum", lambda: op_cases.lowrank_sum("spiked"), {"torch.linalg.svd": 8}),
    Case("lowrank_sum/steep_block_x8", "lowrank_sum", lambda: op_cases.lowrank_sum("steep"), {"torch.linalg.svd": 8}),
    Case("dare/vit_b32x8", "dare", op_cases.dare, bars={"published recipe (torch)": 8}),
    Case("breadcrumbs/vit_b32x8", "breadcrumbs", op_cases.breadcrumbs, bars={"published recipe (torch)": 8}),
    Case("tall_mask/vit_b32x8", "tall_mask", op_cases.tall_mask, bars={"published recipe (torch)": 4}),
    Case("consensus/vit_b32x8", "consensus", op_cases.consensus, bars={"published recipe (torch)": 4}),
    Case("fisher_merge/vit_b32x8", "fisher_merge", op_cases.fisher_merge),
    Case(
        "weighted_sum_backward/vit_b32x8",
        "weighted_sum_backward",
        op_cases.weighted_sum_backward,
        bars={"autograd through stacked task vectors": 5},
    ),
    Case("merge_files/ties_vit_b32x8", "ties_merge_part", lambda: stream_cases.merge_files("ties", 8)),
    Case("merge_files/average_vit_b32x8", "weighted_sum", lambda: stream_cases.merge_files("average", 8)),
    Case("adamerge_step/vit_s14_8_x8", "weighted_sum_backward", adamerge_cases.step),
    Case("adamerge_merge/vit_s14_8_x8", "weighted_sum_backward", adamerge_cases.merge_and_gradient),
    Case(
        "sparse_adamw_step_/vit_b32_random_0.1",
        "sparse_adamw_step_",
        lambda: sparse_cases.adamw_step(0.1),
        bars={"torch fused AdamW, dense": 1.7, "masked recipe": 8},
    ),
    Case(
        "sparse_adamw_step_/vit_b32_random_0.3",
        "sparse_adamw_step_",
        lambda: sparse_cases.adamw_step(0.3),
        bars={"torch fused AdamW, dense": 1},
    ),
    Case("sparse_adamw_step_/vit_b32_random_0.5", "sparse_adamw_step_", lambda: sparse_cases.adamw_step(0.5)),
    Case(
        "sparse_adamw_step_/vit_b32_random_0.01",
        "sparse_adamw_step_",
        lambda: sparse_cases.adamw_step(0.01),
        bars={"torch fused AdamW, dense": 8},
    ),
    Case(
        "sparse_adamw_step_/vit_b32_rows_0.1",
        "sparse_adamw_step_",
        lambda: sparse_cases.adamw_step(0.1, rows=True),
        bars={"torch fused AdamW, dense": 5},
    ),
    Case(
        "fisher_diag_/vit_b32_mlp",
        "fisher_diag_",
        gradient_cases.fisher,
        bars={"mm + addcmul_ by sample": 1.3},
        quick=True,
    ),
    Case(
        "masked_wgrad_/vit_b32_mlp_random_0.1",
        "masked_wgrad_",
        lambda: gradient_cases.masked(0.1),
        bars={"F.linear, then gather": 2},
    ),
    Case(
        "masked_wgrad_/vit_b32_mlp_random_0.01",
        "masked_wgrad_",
        lambda: gradient_cases.masked(0.01),
        bars={"F.linear, then gather": 6},
    ),
    Case(
        "masked_wgrad_/vit_b32_mlp_rows_0.1",
        "masked_wgrad_",
        lambda: gradient_cases.masked(0.1, rows=True),
        bars={"F.linear, then gather": 6},
    ),
    Case(
        "fisher_pass/vit_b32",
        "fisher_diag_",
        calibrate_cases.fisher_pass,
        bars={"stock torch forward + backward": 1.0, "published recipe": 8},
    ),
    Case("fisher_pass/vit_b32_2_blocks", "fisher_diag_", lambda: calibrate_cases.fisher_pass(4, 2), quick=True),
    Case("sparse_step/vit_b32", "", sparse_loop_cases.sparse_step, bars={"full fine-tuning": 1 / 0.78}),
    Case("sparse_step/vit_b32_2_blocks", "", lambda: sparse_loop_cases.sparse_step(2, 4), quick=True),
    Case("calibrate_round/vit_b32", "bottom_k_mask", calibrate_cases.calibrate_round),
    Case(
        "sweep_arithmetic/vit_s14_8_x8",
        "ties_merge",
        sweep_cases.arithmetic,
        bars={"ta.merge, one scale of 12": 20 / 12},
    ),
    Case("cart_grid/vit_b32_block_x8", "lowrank_sum", loop_cases.cart_grid),
    *[
        Case(
            f"dual_attention/{model}",
            "dual_attention",
            lambda tokens=tokens, batch=batch: tangent_cases.dual_attention(tokens, batch),  # type: ignore[misc]
            bars={"dense torch": 1},
        )
        for model, tokens, batch in (
            ("vit_b32", 50, 8),
            ("vit_b16", 197, 2),
            ("vit_l14", 257, 2),
            ("vit_l14_336", 577, 1),
        )
    ],
    Case(
        "linearized_step/vit_b32_4_blocks",
        "",
        lambda: tangent_cases.linearized_step(4),
        bars={"ordinary step, same products": 1 / 1.75},
    ),
    Case("tangent_features/vit_b32_2_blocks_x8", "", lambda: tangent_cases.tangent_features(2)),
    Case(
        "linearized_search/vit_b32_block_x8",
        "",
        lambda: tangent_cases.linearized_search(1),
        bars={"21 linearized forwards a task": 15},
    ),
    Case("finetune_step/vit_s14_8", "", loop_cases.finetune_step, bars={"stock torch": 1.5}, quick=True),
    Case(
        "disentanglement/nonlinear",
        "",
        analysis_cases.disentanglement,
        bars={"straightforward loop, 2 rows of 20": 1.6 * 2 / 20},
    ),
    Case(
        "disentanglement/linearized",
        "",
        lambda: analysis_cases.disentanglement(rows=1, linearized=True),
        bars={"straightforward loop, 1 row of 20": 30 / 20},
    ),
    *language_cases.CASES,
    *gpu_cases.CASES,
]
