// base + sum of the weighted deltas that a bit a task and element keeps: how dare and breadcrumbs end.
#pragma once

#include <cstdint>

#include "math/weighted_sum.h"
#include "utils/prefetch.h"
#include "utils/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace taskarith {

// What one call adds up. Bit i % 64 of words[t * stride + i / 64] keeps element i of task t.
struct KeptDeltas {
  const float* base;
  const float* const* finetuned;  // [T]
  const double* weights;          // [T]
  int64_t tasks;
  const uint64_t* words;
  int64_t stride;
};

namespace {

// Elements [begin, end), all in one word. In the order of the tasks, in double, rounded once.
TASKARITH_SIMD void kept_sum_portable(const KeptDeltas& x, int64_t begin, int64_t end, float* __restrict out) {
  double base[64], sum[64];
  const int64_t n = end - begin;
  for (int64_t i = 0; i < n; ++i) sum[i] = base[i] = x.base[begin + i];
  for (int64_t t = 0; t < x.tasks; ++t) {
    const uint64_t word = x.words[t * x.stride + begin / 64] >> (begin % 64);
    const float* f = x.finetuned[t] + begin;
    const double weight = x.weights[t];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const double added = add_weighted_delta(sum[i], weight, f[i], base[i]);
      sum[i] = (word >> i) & 1 ? added : sum[i];
    }
  }
  for (int64_t i = 0; i < n; ++i) out[begin + i] = static_cast<float>(sum[i]);
}

#if defined(__x86_64__)
TASKARITH_AVX512 inline __m512d load_double(const float* x) { return _mm512_cvtps_pd(_mm256_loadu_ps(x)); }

// 64 elements from `begin`, a multiple of 64: eight running sums stay in registers.
TASKARITH_AVX512 inline void kept_sum_word(const KeptDeltas& x, int64_t begin, float* out) {
  __m512d base[8], sum[8];
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) sum[v] = base[v] = load_double(x.base + begin + 8 * v);
  for (int64_t t = 0; t < x.tasks; ++t) {
    const uint64_t word = x.words[t * x.stride + begin / 64];
    const float* f = x.finetuned[t] + begin;
    prefetch_floats(f + kPrefetch, 64);
    const __m512d weight = _mm512_set1_pd(x.weights[t]);
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      const __m512d delta = _mm512_sub_pd(load_double(f + 8 * v), base[v]);
      sum[v] = _mm512_mask3_fmadd_pd(delta, weight, sum[v], static_cast<__mmask8>(word >> (8 * v)));
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) _mm256_storeu_ps(out + begin + 8 * v, _mm512_cvtpd_ps(sum[v]));
}

TASKARITH_AVX512 inline int64_t kept_sum_avx512(const KeptDeltas& x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) kept_sum_word(x, i, out);
  return i;
}
#endif

inline void kept_sum(const KeptDeltas& x, int64_t n, float* out) {
  int64_t i = 0;
#if defined(__x86_64__)
  if (has_avx512()) i = kept_sum_avx512(x, n, out);
#endif
  for (; i < n; i += 64) kept_sum_portable(x, i, i + 64 < n ? i + 64 : n, out);
}

}  // namespace
}  // namespace taskarith
