"""Every operator of the package; one module an operator, of the same name."""

from taskarith_fast.ops.dare import dare
from taskarith_fast.ops.kth_magnitude import kth_magnitude
from taskarith_fast.ops.linear import linear
from taskarith_fast.ops.lowrank_sum import lowrank_sum
from taskarith_fast.ops.ties_merge import ties_merge
from taskarith_fast.ops.truncated_svd import truncated_svd
from taskarith_fast.ops.weighted_sum import weighted_sum
from taskarith_fast.ops.weighted_sum_backward import weighted_sum_backward

__all__ = [
    "dare",
    "kth_magnitude",
    "linear",
    "lowrank_sum",
    "ties_merge",
    "truncated_svd",
    "weighted_sum",
    "weighted_sum_backward",
]
