// Results that nobody reads again soon go past the caches: an ordinary store would first read the line it overwrites.
#pragma once

#include "utils/convert.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace taskarith {

inline void stream_bytes(const void* from, void* to, int64_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
#if defined(__x86_64__)
  if ((reinterpret_cast<uintptr_t>(target) & 15) == 0) {
    int64_t i = 0;
    for (; i + 16 <= bytes; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i)));
    source += i, target += i, bytes -= i;
  }
#endif
  std::memcpy(target, source, bytes);
}

// n <= kMax floats as elements of `data`. Call stream_fence() before other threads read them.
template <int64_t kMax>
void stream_block(const float* x, void* data, ScalarType type, int64_t offset, int64_t n) {
  if (type == ScalarType::Float) return stream_bytes(x, static_cast<float*>(data) + offset, n * 4);
  alignas(64) uint16_t rounded[kMax];
  store_block(x, rounded, type, 0, n);
  stream_bytes(rounded, static_cast<uint16_t*>(data) + offset, n * 2);
}

inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace taskarith
