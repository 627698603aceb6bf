// Floats to bfloat16 or float16 at random, so that the expectation is the float: small updates are not lost.
//
// Value j of a tensor takes half-word j mod 8 (of the words in order, the lower half first) of the Philox block with
// counter j / 8, third counter word `step` and the tensor's key.
#pragma once

#include <cmath>

#include "math/philox.h"
#include "utils/convert.h"

namespace taskarith {

// Adds 16 random bits below the last bit that is kept, and cuts. Infinities and NaN stay.
TASKARITH_HOST_DEVICE float round_to_bfloat16(float x, uint32_t random) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if ((bits & 0x7F800000u) == 0x7F800000u) return x;
  return __builtin_bit_cast(float, (bits + random) & 0xFFFF0000u);
}

// float16 has ten bits below its exponent, which ends at -14.
TASKARITH_HOST_DEVICE float round_to_float16(float x, uint32_t random) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x) & 0x7FFFFFFFu;
  const uint32_t exponent = bits >> 23 < 113u ? 113u : bits >> 23;
  if (exponent > 142u) return x;  // 65,536 and more are infinite in any case
  const float quantum = __builtin_bit_cast(float, (exponent - 10u) << 23);
  const float inverse = __builtin_bit_cast(float, (264u - exponent) << 23);
  const float units = __builtin_bit_cast(float, bits) * inverse;
  const float whole = static_cast<float>(static_cast<int32_t>(units));
  const float up = units - whole > static_cast<float>(random) * 0x1p-16f ? 1.0f : 0.0f;
  return copysignf((whole + up) * quantum, x);
}

inline void round_at_random(float* x, int64_t n, ScalarType type, uint64_t key, uint32_t step, int64_t position) {
  PhiloxBlock block{};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t j = position + i;
    if (i == 0 || j % 8 == 0) block = philox(static_cast<uint64_t>(j / 8), step, key);
    const uint32_t random = half_word(block, static_cast<int>(j % 8));
    x[i] = type == ScalarType::BFloat16 ? round_to_bfloat16(x[i], random) : round_to_float16(x[i], random);
  }
}

}  // namespace taskarith
