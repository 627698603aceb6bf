// fisher_diag_: fisher [o, k] += scale * sum_b (sum_s grad_y[b, s, :]^T x[b, s, :])^2.
#pragma once

#include "utils/check.h"

namespace taskarith {

inline void check_fisher_diag(const Tensor& fisher, const Tensor& x, const Tensor& grad_y) {
  STD_TORCH_CHECK(fisher.dim() == 2 && x.dim() == 3 && grad_y.dim() == 3, "fisher_diag_: [o, k], [B, S, k], [B, S, o]");
  STD_TORCH_CHECK(fisher.scalar_type() == ScalarType::Float && fisher.is_contiguous(),
                  "fisher_diag_: fisher must be contiguous float32");
  STD_TORCH_CHECK(is_storage_type(x.scalar_type()) && is_storage_type(grad_y.scalar_type()),
                  "fisher_diag_: float32, bfloat16 or float16");
  STD_TORCH_CHECK(x.size(0) == grad_y.size(0) && x.size(1) == grad_y.size(1) && fisher.size(0) == grad_y.size(2) &&
                      fisher.size(1) == x.size(2),
                  "fisher_diag_: the sizes of fisher, x and grad_y do not fit");
  STD_TORCH_CHECK(x.is_cpu() == fisher.is_cpu() && grad_y.is_cpu() == fisher.is_cpu(),
                  "fisher_diag_: tensors on different devices");
}

}  // namespace taskarith
