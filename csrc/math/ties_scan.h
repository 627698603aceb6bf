// Magnitudes |finetuned - base| as ordered integers, and one pass that sorts them against a bracket.
//
// The bits of a nonnegative float order like the float. All NaNs count as one value above infinity: a total order,
// which float compares do not give.
#pragma once

#include <cstdint>

#include "utils/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace taskarith {

constexpr uint32_t kNan = 0x7F800001u;    // the largest magnitude
constexpr uint32_t kAbove = 0x7FFFFFFFu;  // above every magnitude

inline __attribute__((always_inline)) uint32_t magnitude_bits(float finetuned, float base) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, finetuned - base) & 0x7FFFFFFFu;
  return bits < kNan ? bits : kNan;
}

// Closed: low <= high.
struct Bracket {
  uint32_t low, high;
};

struct BracketCounts {
  int64_t above = 0;    // > high
  int64_t at_high = 0;  // == high
  int64_t at_low = 0;   // == low, where low < high
};

namespace {

TASKARITH_SIMD void fill_magnitudes(const float* __restrict finetuned, const float* __restrict base,
                                    uint32_t* __restrict bits, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) bits[i] = magnitude_bits(finetuned[i], base[i]);
}

// Counts n elements against the bracket and appends those strictly inside, in order, to `inside` (room for n).
// Returns how many.
int64_t scan_portable(const float* finetuned, const float* base, int64_t n, Bracket bracket, BracketCounts& counts,
                      uint32_t* inside) {
  constexpr int64_t kGroup = 128;
  uint32_t bits[kGroup];
  int64_t found = 0;
  for (int64_t begin = 0; begin < n; begin += kGroup) {
    const int64_t size = n - begin < kGroup ? n - begin : kGroup;
    fill_magnitudes(finetuned + begin, base + begin, bits, size);
    for (int64_t i = 0; i < size; ++i) {
      counts.above += bits[i] > bracket.high;
      inside[found] = bits[i];  // kept only if the index moves on: no branch to mispredict
      found += bits[i] > bracket.low && bits[i] < bracket.high;
      counts.at_high += bits[i] == bracket.high;
      counts.at_low += bits[i] == bracket.low && bracket.low != bracket.high;
    }
  }
  return found;
}

#if defined(__x86_64__)
// Four vectors a step: two compares each decide for all but the few elements in the bracket.
TASKARITH_AVX512 int64_t scan_avx512(const float* finetuned, const float* base, int64_t n, Bracket bracket,
                                     BracketCounts& counts, uint32_t* inside) {
  constexpr int64_t kAhead = 2048;  // floats: the same strip's successor, while the others are scanned
  const __m512i low = _mm512_set1_epi32(static_cast<int>(bracket.low));
  const __m512i high = _mm512_set1_epi32(static_cast<int>(bracket.high));
  const __m512i sign_off = _mm512_set1_epi32(0x7FFFFFFF), nan = _mm512_set1_epi32(static_cast<int>(kNan));
  const bool one_value = bracket.low == bracket.high;
  int64_t found = 0, above = 0;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    __m512i m[4];
    uint64_t over = 0, reached = 0;
    for (int u = 0; u < 4; ++u) {
      _mm_prefetch(reinterpret_cast<const char*>(finetuned + i + 16 * u + kAhead), _MM_HINT_T0);
      const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(finetuned + i + 16 * u), _mm512_loadu_ps(base + i + 16 * u));
      m[u] = _mm512_min_epi32(_mm512_and_si512(_mm512_castps_si512(d), sign_off), nan);
      over |= static_cast<uint64_t>(_mm512_cmpgt_epi32_mask(m[u], high)) << (16 * u);
      reached |= static_cast<uint64_t>(_mm512_cmpge_epi32_mask(m[u], low)) << (16 * u);
    }
    above += __builtin_popcountll(over);
    const uint64_t near = reached & ~over;
    if (near == 0) continue;
    for (int u = 0; u < 4; ++u) {
      const __mmask16 in = static_cast<__mmask16>(near >> (16 * u));
      if (in == 0) continue;
      const __mmask16 at_high = _mm512_mask_cmpeq_epi32_mask(in, m[u], high);
      const __mmask16 at_low = one_value ? 0 : _mm512_mask_cmpeq_epi32_mask(in, m[u], low);
      const __mmask16 strictly = in & ~(at_high | at_low);
      counts.at_high += __builtin_popcount(at_high);
      counts.at_low += __builtin_popcount(at_low);
      _mm512_mask_storeu_epi32(inside + found, static_cast<__mmask16>((1u << __builtin_popcount(strictly)) - 1u),
                               _mm512_maskz_compress_epi32(strictly, m[u]));
      found += __builtin_popcount(strictly);
    }
  }
  counts.above += above;
  return found + scan_portable(finetuned + i, base + i, n - i, bracket, counts, inside + found);
}
#endif

inline int64_t scan(const float* finetuned, const float* base, int64_t n, Bracket bracket, BracketCounts& counts,
                    uint32_t* inside) {
#if defined(__x86_64__)
  if (has_avx512()) return scan_avx512(finetuned, base, n, bracket, counts, inside);
#endif
  return scan_portable(finetuned, base, n, bracket, counts, inside);
}

}  // namespace
}  // namespace taskarith
