// One array walked by a grid: blocks take it a step at a time, each thread a part of the step.
#pragma once

#include <algorithm>

#include "utils/launch.cuh"
#include "utils/vector.cuh"

namespace taskarith {

constexpr int kBlocksAMultiprocessor = 32;  // in turn: the last turn is short

// f(begin, left, whole) for every step of kStep elements that this block takes: `left` elements are there, and `whole`
// is a constant, whether they are a full step whose arrays are aligned.
template <int kStep, class F>
__device__ __forceinline__ void for_each_step(int64_t numel, bool aligned, const F& f) {
  for (int64_t begin = blockIdx.x * int64_t{kStep}; begin < numel; begin += gridDim.x * int64_t{kStep}) {
    const int left = static_cast<int>(min(numel - begin, int64_t{kStep}));
    if (aligned && left == kStep)
      f(begin, left, Constant<true>{});
    else
      f(begin, left, Constant<false>{});
  }
}

// Blocks for `numel` elements in steps of `step`; 0 where there are none.
inline int64_t blocks_for_steps(const Launcher& launcher, int64_t numel, int64_t step) {
  return std::min<int64_t>((numel + step - 1) / step, launcher.multiprocessors() * kBlocksAMultiprocessor);
}

}  // namespace taskarith
