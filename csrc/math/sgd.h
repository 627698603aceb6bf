// The arithmetic of SGD with momentum, operation by operation that of torch.optim.SGD.
#pragma once

#include <cstdint>

#include "math/rounded_product.h"

namespace taskarith {

struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, buffered;  // buffered: there is a momentum buffer
};

struct SgdScalars {
  float factor;  // of the gradient: clipping, loss scale, sign
  float weight_decay;
  float momentum;
  float rest;  // 1 - dampening; 1 in the first step
  float lr;    // negative
  bool nesterov;
};

TASKARITH_HOST_DEVICE SgdScalars fold_sgd(const SgdOptions& x, int64_t step, float factor) {
  return {factor,
          static_cast<float>(x.weight_decay),
          x.buffered ? static_cast<float>(x.momentum) : 0.0f,
          x.buffered && step > 1 ? static_cast<float>(1 - x.dampening) : 1.0f,
          static_cast<float>(-x.lr),
          x.nesterov};
}

// Updates the momentum buffer; returns the new parameter.
TASKARITH_HOST_DEVICE float sgd(float p, float grad, float& buffer, const SgdScalars& s) {
  const float g = fmaf(s.weight_decay, p, rounded_product(grad, s.factor));
  buffer = fmaf(s.rest, g, rounded_product(buffer, s.momentum));
  return fmaf(s.lr, s.nesterov ? fmaf(s.momentum, buffer, g) : buffer, p);
}

}  // namespace taskarith
