// Scores as integers in the order in which they are to be chosen, the largest key first.
#pragma once

#include <cstdint>

#include "utils/host_device.h"

namespace taskarith {

// `flip` is all ones where the lowest score is to have the largest key, else 0. Key 0 is no score's.
TASKARITH_HOST_DEVICE uint32_t score_key(float score, uint32_t flip) {
  const int32_t bits = __builtin_bit_cast(int32_t, score + 0.0f);  // -0 becomes 0: the two are equal
  const uint32_t ordered = static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
  const uint32_t key = ordered ^ flip;
  return key > 1u ? key : 1u;
}

}  // namespace taskarith
