"""Models linearized at their weights: fine-tuning in the tangent space, and the algebra of many tangents at once."""

from taskarith_fast.tangent.features import TangentFeatures
from taskarith_fast.tangent.linearized import LinearizedModel, linearize
from taskarith_fast.tangent.pair import NoRuleError

__all__ = ["LinearizedModel", "NoRuleError", "TangentFeatures", "linearize"]
