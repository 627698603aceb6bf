// fisher_diag_elementwise_: fisher [d] += scale * sum_b (sum_s grad_y[b, s, :] * x[b, s, :])^2; x absent means ones.
#pragma once

#include <optional>

#include "utils/check.h"

namespace taskarith {

inline void check_fisher_diag_elementwise(const Tensor& fisher, const Tensor& grad_y, const std::optional<Tensor>& x) {
  STD_TORCH_CHECK(fisher.dim() == 1 && grad_y.dim() == 3 && grad_y.size(2) == fisher.size(0),
                  "fisher_diag_elementwise_: fisher [d] and grad_y [B, S, d]");
  STD_TORCH_CHECK(fisher.scalar_type() == ScalarType::Float && fisher.is_contiguous(),
                  "fisher_diag_elementwise_: fisher must be contiguous float32");
  STD_TORCH_CHECK(is_storage_type(grad_y.scalar_type()) && (!x || is_storage_type(x->scalar_type())),
                  "fisher_diag_elementwise_: float32, bfloat16 or float16");
  STD_TORCH_CHECK(grad_y.is_cpu() == fisher.is_cpu() && (!x || x->is_cpu() == fisher.is_cpu()),
                  "fisher_diag_elementwise_: tensors on different devices");
  if (x)
    STD_TORCH_CHECK(
        x->dim() == 3 && x->size(0) == grad_y.size(0) && x->size(1) == grad_y.size(1) && x->size(2) == grad_y.size(2),
        "fisher_diag_elementwise_: x must have the shape of grad_y");
}

}  // namespace taskarith
