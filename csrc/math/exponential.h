// exp, sigmoid and reciprocal in float, shared by the devices: on the CPU branch-free, so that loops over them
// vectorize; on a GPU by its own instructions.
#pragma once

#include <cstdint>

#include "utils/host_device.h"

namespace taskarith {

// Within 2 units in the last place for x <= 88. On the CPU Cephes' expf, exactly 0 below -87.3.
TASKARITH_HOST_DEVICE float exp_float(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
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
#endif
}

// 1 / x for x >= 1, to one unit.
TASKARITH_HOST_DEVICE float reciprocal_float(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

TASKARITH_HOST_DEVICE float sigmoid_float(float x) { return reciprocal_float(1.0f + exp_float(-x)); }

}  // namespace taskarith
