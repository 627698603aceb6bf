// Activations of gated linear units: values and derivatives.
#pragma once

#include "math/gelu.h"

namespace taskarith {

enum class GateForm { kRelu, kSilu, kErf, kTanh };

template <GateForm kForm>
TASKARITH_HOST_DEVICE float gate_value(float x) {
  if constexpr (kForm == GateForm::kRelu) return x > 0.0f ? x : 0.0f;
  if constexpr (kForm == GateForm::kSilu) return x * sigmoid_float(x);
  if constexpr (kForm == GateForm::kErf) {
    const float tail = exp_float(-0.5f * x * x) * normal_tail(x);
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
  return x * sigmoid_float(1.5957691216057308f * (x + 0.044715f * x * x * x));  // (1 + tanh u) / 2 = sigmoid(2 u)
}

template <GateForm kForm>
TASKARITH_HOST_DEVICE float gate_slope(float x) {
  if constexpr (kForm == GateForm::kRelu) return x > 0.0f ? 1.0f : 0.0f;
  if constexpr (kForm == GateForm::kErf) return gelu_slope<GeluForm::kErf>(x);
  if constexpr (kForm == GateForm::kTanh) return gelu_slope<GeluForm::kTanh>(x);
  const float s = sigmoid_float(x);
  return s + x * s * (1.0f - s);
}

}  // namespace taskarith
