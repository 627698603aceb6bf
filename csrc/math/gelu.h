// Derivatives of the three forms of the Gaussian error unit.
#pragma once

#include "math/exponential.h"

namespace taskarith {

enum class GeluForm { kErf, kTanh, kQuick };

// The standard normal distribution beyond |x|, over exp(-x^2 / 2): a minimax fit in t = 1 / (1 + 0.35 |x|), relative
// error 3.2e-8 for |x| <= 13.5, where the exponential has vanished.
TASKARITH_HOST_DEVICE float normal_tail(float x) {
  const float t = reciprocal_float(1.0f + 0.35f * (x < 0.0f ? -x : x));
  float p = -0.0291258767f;
  p = p * t + 0.143872291f;
  p = p * t - 0.255504668f;
  p = p * t + 0.158929408f;
  p = p * t - 0.0229372196f;
  p = p * t + 0.105432972f;
  p = p * t + 0.119852431f;
  p = p * t + 0.13985908f;
  p = p * t + 0.139621571f;
  return p * t;
}

template <GeluForm kForm>
TASKARITH_HOST_DEVICE float gelu_slope(float x) {
  if constexpr (kForm == GeluForm::kErf) {
    const float e = exp_float(-0.5f * x * x), tail = e * normal_tail(x);
    return (x < 0.0f ? tail : 1.0f - tail) + x * (0.3989422804014327f * e);
  } else if constexpr (kForm == GeluForm::kTanh) {
    constexpr float kRoot = 0.7978845608028654f, kCubic = 0.044715f;
    const float u = kRoot * (x + kCubic * x * x * x);
    const float s = sigmoid_float(2.0f * u);  // (1 + tanh u) / 2
    return s + 2.0f * x * s * (1.0f - s) * kRoot * (1.0f + 3.0f * kCubic * x * x);
  } else {
    const float s = sigmoid_float(1.702f * x);
    return s + 1.702f * x * s * (1.0f - s);
  }
}

}  // namespace taskarith
