// dual_gelu: dy = g'(x) dx, elementwise.
#pragma once

#include <string>

#include "math/gelu.h"
#include "utils/check.h"

namespace taskarith {

inline GeluForm check_dual_gelu(const Tensor& x, const Tensor& dx, const std::string& approximate) {
  STD_TORCH_CHECK(is_storage_type(x.scalar_type()), "dual_gelu: float32, bfloat16 or float16");
  STD_TORCH_CHECK(x.numel() == dx.numel() && x.scalar_type() == dx.scalar_type() && x.is_cpu() == dx.is_cpu(),
                  "dual_gelu: dx must have the size, dtype and device of x");
  if (approximate == "none") return GeluForm::kErf;
  if (approximate == "tanh") return GeluForm::kTanh;
  STD_TORCH_CHECK(approximate == "quick", "dual_gelu: approximate must be none, tanh or quick, got ", approximate);
  return GeluForm::kQuick;
}

}  // namespace taskarith
