// dual_glu: dy = g'(a) b da + g(a) db, elementwise.
#pragma once

#include <optional>
#include <string>

#include "math/gate.h"
#include "utils/check.h"

namespace taskarith {

inline GateForm check_dual_glu(const Tensor& a, const std::optional<Tensor>& da, const Tensor& b,
                               const std::optional<Tensor>& db, const std::string& form) {
  STD_TORCH_CHECK(is_storage_type(a.scalar_type()), "dual_glu: float32, bfloat16 or float16");
  const auto fits = [&](const Tensor& t) {
    return t.numel() == a.numel() && t.scalar_type() == a.scalar_type() && t.is_cpu() == a.is_cpu();
  };
  STD_TORCH_CHECK(fits(b) && (!da.has_value() || fits(*da)) && (!db.has_value() || fits(*db)),
                  "dual_glu: all tensors must have the size, dtype and device of a");
  if (form == "relu") return GateForm::kRelu;
  if (form == "silu") return GateForm::kSilu;
  if (form == "gelu") return GateForm::kErf;
  STD_TORCH_CHECK(form == "gelu_tanh", "dual_glu: form must be relu, silu, gelu or gelu_tanh, got ", form);
  return GateForm::kTanh;
}

}  // namespace taskarith
