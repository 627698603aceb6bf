// The arithmetic of weighted_sum, used by the CPU and the CUDA kernel.
#pragma once

#include "utils/host_device.h"

namespace taskarith {

// One task's step. In double: base and the weighted deltas may cancel, and then float32 keeps no digit.
TASKARITH_HOST_DEVICE double add_weighted_delta(double sum, double weight, float finetuned, double base) {
  return sum + weight * (static_cast<double>(finetuned) - base);
}

}  // namespace taskarith
