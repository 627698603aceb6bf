// exp and erfc in float, branch-free, so that loops over them vectorize.
#pragma once

#include <cstdint>

#include "math/simd_vector.h"

namespace taskarith {

// Cephes' expf: within 2 units in the last place for x <= 88; exactly 0 below -87.3.
TASKARITH_INLINE float exp_float(float x) {
  const float c = x < -87.3f ? -87.3f : (x > 88.0f ? 88.0f : x);
  const float shifted = c * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
  const float n = shifted - 12582912.0f;
  float r = c - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t power = (static_cast<int32_t>(n) + 127) << 23;
  const float y = p * __builtin_bit_cast(float, power);
  return x < -87.3f ? 0.0f : (x != x ? x : y);
}

TASKARITH_INLINE float sigmoid_float(float x) { return 1.0f / (1.0f + exp_float(-x)); }

// erfc by a Chebyshev fit in t = 1 / (1 + |z| / 2) (Press et al. 1992, section 6.2): relative error 1.2e-7 for z >= 0.
TASKARITH_INLINE float erfc_float(float z) {
  const float a = z < 0.0f ? -z : z;
  const float t = 1.0f / (1.0f + 0.5f * a);
  float p = 0.17087277f;
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  const float y = t * exp_float(p - a * a);
  return z < 0.0f ? 2.0f - y : y;
}

}  // namespace taskarith
