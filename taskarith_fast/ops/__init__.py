"""Every operator of the package; one module an operator, of the same name."""

from taskarith_fast.ops.dare import dare
from taskarith_fast.ops.weighted_sum import weighted_sum
from taskarith_fast.ops.weighted_sum_backward import weighted_sum_backward

__all__ = ["dare", "weighted_sum", "weighted_sum_backward"]
