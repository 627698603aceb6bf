// Derivatives of the three forms of the Gaussian error unit.
#pragma once

#include "math/exponential.h"

namespace taskarith {

enum class GeluForm { kErf, kTanh, kQuick };

template <GeluForm kForm>
TASKARITH_INLINE float gelu_slope(float x) {
  if (kForm == GeluForm::kErf) {
    const float phi = 0.3989422804014327f * exp_float(-0.5f * x * x);
    return 0.5f * erfc_float(-0.7071067811865475f * x) + x * phi;
  }
  if (kForm == GeluForm::kTanh) {
    constexpr float kRoot = 0.7978845608028654f, kCubic = 0.044715f;
    const float u = kRoot * (x + kCubic * x * x * x);
    const float s = sigmoid_float(2.0f * u);  // (1 + tanh u) / 2
    return s + 2.0f * x * s * (1.0f - s) * kRoot * (1.0f + 3.0f * kCubic * x * x);
  }
  const float s = sigmoid_float(1.702f * x);
  return s + 1.702f * x * s * (1.0f - s);
}

}  // namespace taskarith
