// Kernels over T + 1 models advance on many streams in turn, which the hardware's prefetchers do not follow.
#pragma once

#include <cstdint>

namespace taskarith {

constexpr int64_t kPrefetch = 512;  // floats ahead: a strip

// Asks for `n` floats from `x` on; addresses past the end of an array are harmless.
inline __attribute__((always_inline)) void prefetch_floats(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(x + i);
}

}  // namespace taskarith
