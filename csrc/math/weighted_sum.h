// The arithmetic of weighted_sum, used by the CPU and the CUDA kernel.
#pragma once

#if defined(__CUDACC__)
#define TASKARITH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TASKARITH_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace taskarith {

// One task's step. In double: base and the weighted deltas may cancel, and then float32 keeps no digit.
TASKARITH_HOST_DEVICE double add_weighted_delta(double sum, double weight, float finetuned, double base) {
  return sum + weight * (static_cast<double>(finetuned) - base);
}

}  // namespace taskarith
