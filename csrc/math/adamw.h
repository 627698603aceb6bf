// The arithmetic of AdamW (Loshchilov & Hutter 2019, algorithm 2), operation by operation that of torch.optim.AdamW.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/rounded_product.h"

namespace taskarith {

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

// A step's scalars, folded in double.
struct AdamWScalars {
  float factor;        // of the gradient: clipping, loss scale, sign
  float decay;         // 1 - lr weight_decay
  float rest1, rest2;  // 1 - beta1, 1 - beta2
  float beta2;
  float root2;  // sqrt(1 - beta2^step)
  float eps;
  float step;  // -lr / (1 - beta1^step)
};

TASKARITH_HOST_DEVICE AdamWScalars fold_adamw(const AdamWOptions& x, int64_t step, float factor) {
  const double bias1 = 1 - pow(x.beta1, static_cast<double>(step));
  const double bias2 = 1 - pow(x.beta2, static_cast<double>(step));
  return {factor,
          static_cast<float>(1 - x.lr * x.weight_decay),
          static_cast<float>(1 - x.beta1),
          static_cast<float>(1 - x.beta2),
          static_cast<float>(x.beta2),
          static_cast<float>(sqrt(bias2)),
          static_cast<float>(x.eps),
          static_cast<float>(-(x.lr / bias1))};
}

// Updates the moments m and v; returns the new parameter.
TASKARITH_HOST_DEVICE float adamw(float p, float grad, float& m, float& v, const AdamWScalars& s) {
  const float g = rounded_product(grad, s.factor);
  // From the nearer end, as torch.lerp: beta1 = 0 gives the gradient exactly.
  m = s.rest1 < 0.5f ? fmaf(s.rest1, g - m, m) : fmaf(s.rest1 - 1.0f, g - m, g);
  v = fmaf(rounded_product(s.rest2, g), g, rounded_product(v, s.beta2));
  const float denominator = sqrtf(v) / s.root2 + s.eps;
  return rounded_product(p, s.decay) + rounded_product(s.step, m) / denominator;
}

}  // namespace taskarith
