// Magnitudes |finetuned - base| as ordered integers.
//
// The bits of a nonnegative float order like the float. All NaNs count as one value above infinity: a total order,
// which float compares do not give.
#pragma once

#include <cstdint>

#include "utils/host_device.h"

namespace taskarith {

constexpr uint32_t kNan = 0x7F800001u;    // the largest magnitude
constexpr uint32_t kAbove = 0x7FFFFFFFu;  // above every magnitude

TASKARITH_HOST_DEVICE uint32_t magnitude_bits(float delta) { return __builtin_bit_cast(uint32_t, delta) & 0x7FFFFFFFu; }

TASKARITH_HOST_DEVICE uint32_t ordered_magnitude(float delta) {
  const uint32_t bits = magnitude_bits(delta);
  return bits < kNan ? bits : kNan;
}

}  // namespace taskarith
