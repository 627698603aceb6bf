// Which weights a task needs, 64 a word.
#pragma once

#include <cstdint>

#include "math/bits.h"
#include "math/tall.h"
#include "utils/prefetch.h"
#include "utils/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace taskarith {

struct TallStrip {
  const float* base;
  const float* const* finetuned;  // [T]
  const double* lambdas;          // [T]
  int64_t tasks;
  double* sums;     // out: tau_MT
  uint64_t* words;  // out: bit i % 64 of words[t * stride + i / 64]
  int64_t stride;
};

namespace {

TASKARITH_SIMD void add_deltas(const float* __restrict finetuned, const double* __restrict base, double* __restrict sum,
                               int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += finetuned[i] - base[i];
}

TASKARITH_SIMD void flag_needed(const float* __restrict finetuned, const double* __restrict base,
                                const double* __restrict sum, double lambda, uint8_t* __restrict flags, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) flags[i] = is_needed(finetuned[i] - base[i], lambda, sum[i]);
}

// Elements [begin, begin + n), n <= 64, `begin` a multiple of 64.
inline void tall_word_portable(const TallStrip& x, int64_t begin, int64_t n) {
  double base[64];
  uint8_t flags[64] = {};
  double* sum = x.sums + begin;
  for (int64_t i = 0; i < n; ++i) base[i] = x.base[begin + i], sum[i] = 0;
  for (int64_t t = 0; t < x.tasks; ++t) add_deltas(x.finetuned[t] + begin, base, sum, n);
  for (int64_t t = 0; t < x.tasks; ++t) {
    flag_needed(x.finetuned[t] + begin, base, sum, x.lambdas[t], flags, n);
    x.words[t * x.stride + begin / 64] = pack_word(flags, n);
  }
}

#if defined(__x86_64__)
TASKARITH_AVX512 inline __m512d widen8(const float* x) { return _mm512_cvtps_pd(_mm256_loadu_ps(x)); }

TASKARITH_AVX512 inline void tall_word_avx512(const TallStrip& x, int64_t begin) {
  __m512d base[8], sum[8];
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) base[v] = widen8(x.base + begin + 8 * v), sum[v] = _mm512_setzero_pd();
  for (int64_t t = 0; t < x.tasks; ++t) {
    prefetch_floats(x.finetuned[t] + begin + kPrefetch, 64);
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v)
      sum[v] = _mm512_add_pd(sum[v], _mm512_sub_pd(widen8(x.finetuned[t] + begin + 8 * v), base[v]));
  }
  for (int64_t t = 0; t < x.tasks; ++t) {
    const __m512d lambda = _mm512_set1_pd(x.lambdas[t]);
    uint64_t word = 0;
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      const __m512d delta = _mm512_sub_pd(widen8(x.finetuned[t] + begin + 8 * v), base[v]);
      const __m512d rest = _mm512_mul_pd(lambda, _mm512_abs_pd(_mm512_sub_pd(sum[v], delta)));
      word |= static_cast<uint64_t>(_mm512_cmp_pd_mask(_mm512_abs_pd(delta), rest, _CMP_GT_OQ)) << (8 * v);
    }
    x.words[t * x.stride + begin / 64] = word;
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) _mm512_storeu_pd(x.sums + begin + 8 * v, sum[v]);
}

TASKARITH_AVX512 inline int64_t tall_words_avx512(const TallStrip& x, int64_t n) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) tall_word_avx512(x, i);
  return i;
}
#endif

inline void tall_words(const TallStrip& x, int64_t n) {
  int64_t i = 0;
#if defined(__x86_64__)
  if (has_avx512()) i = tall_words_avx512(x, n);
#endif
  for (; i < n; i += 64) tall_word_portable(x, i, n - i < 64 ? n - i : 64);
}

}  // namespace
}  // namespace taskarith
