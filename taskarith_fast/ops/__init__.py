"""Every operator of the package; one module an operator, of the same name."""

from taskarith_fast.ops._contract import load_kernels
from taskarith_fast.ops.bottom_k_mask import bottom_k_mask
from taskarith_fast.ops.breadcrumbs import breadcrumbs
from taskarith_fast.ops.consensus import consensus
from taskarith_fast.ops.count_magnitudes_ import count_magnitudes_
from taskarith_fast.ops.count_nonfinite import count_nonfinite
from taskarith_fast.ops.dare import dare
from taskarith_fast.ops.dual_attention import dual_attention
from taskarith_fast.ops.dual_gelu import dual_gelu
from taskarith_fast.ops.dual_glu import dual_glu
from taskarith_fast.ops.dual_layer_norm import dual_layer_norm, dual_rms_norm
from taskarith_fast.ops.dual_linear import dual_linear
from taskarith_fast.ops.dual_patch_embed import dual_patch_embed
from taskarith_fast.ops.dual_residual import dual_residual
from taskarith_fast.ops.fisher_diag_ import fisher_diag_
from taskarith_fast.ops.fisher_diag_elementwise_ import fisher_diag_elementwise_
from taskarith_fast.ops.fisher_merge import fisher_merge
from taskarith_fast.ops.kth_magnitude import kth_magnitude
from taskarith_fast.ops.linear import linear
from taskarith_fast.ops.lowrank_sum import lowrank_sum
from taskarith_fast.ops.masked_wgrad_ import masked_wgrad, masked_wgrad_, row_starts
from taskarith_fast.ops.masked_wgrad_adamw_step_ import masked_wgrad_adamw_step_
from taskarith_fast.ops.pack_bits import pack_bits
from taskarith_fast.ops.selected_square_sums import selected_square_sums
from taskarith_fast.ops.selection import Selection
from taskarith_fast.ops.sparse_adamw_step_ import sparse_adamw_step_
from taskarith_fast.ops.sparse_sgd_step_ import sparse_sgd_step_
from taskarith_fast.ops.tall_mask import tall_mask
from taskarith_fast.ops.tie_cutoffs import tie_cutoffs
from taskarith_fast.ops.ties_merge import ties_merge
from taskarith_fast.ops.ties_merge_part import ties_merge_part
from taskarith_fast.ops.ties_square_sums import ties_square_sums
from taskarith_fast.ops.truncated_svd import truncated_svd
from taskarith_fast.ops.unpack_bits import unpack_bits
from taskarith_fast.ops.weighted_sum import weighted_sum
from taskarith_fast.ops.weighted_sum_backward import weighted_sum_backward
from taskarith_fast.ops.where_bits import where_bits

__all__ = [
    "Selection",
    "bottom_k_mask",
    "breadcrumbs",
    "consensus",
    "count_magnitudes_",
    "count_nonfinite",
    "dare",
    "dual_attention",
    "dual_gelu",
    "dual_glu",
    "dual_layer_norm",
    "dual_linear",
    "dual_patch_embed",
    "dual_residual",
    "dual_rms_norm",
    "fisher_diag_",
    "fisher_diag_elementwise_",
    "fisher_merge",
    "kth_magnitude",
    "linear",
    "lowrank_sum",
    "masked_wgrad",
    "masked_wgrad_",
    "masked_wgrad_adamw_step_",
    "pack_bits",
    "row_starts",
    "selected_square_sums",
    "sparse_adamw_step_",
    "sparse_sgd_step_",
    "tall_mask",
    "tie_cutoffs",
    "ties_merge",
    "ties_merge_part",
    "ties_square_sums",
    "truncated_svd",
    "unpack_bits",
    "weighted_sum",
    "weighted_sum_backward",
    "where_bits",
]

load_kernels()
