"""Every operator of the package; one module an operator, of the same name."""

from taskarith_fast.ops.weighted_sum import weighted_sum

__all__ = ["weighted_sum"]
