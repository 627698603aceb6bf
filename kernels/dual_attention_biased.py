"""dual_attention_biased in Triton: dual_attention's kernel, which adds the mask's tangent to that of the scores."""

from taskarith_fast.kernels.dual_attention import dual_attention_triton as dual_attention_biased_triton

__all__ = ["dual_attention_biased_triton"]
