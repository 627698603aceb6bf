// One pass that sorts magnitudes |finetuned - base| against a bracket.
#pragma once

#include <cstdint>

#include "math/magnitude.h"
#include "utils/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace taskarith {

constexpr int64_t kScanSlack = 16;

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
  for (int64_t i = 0; i < n; ++i) bits[i] = ordered_magnitude(finetuned[i] - base[i]);
}

// Counts n elements against the bracket and writes those strictly inside, in order, to `inside`, which has room for
// n + kScanSlack. Returns how many.
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
TASKARITH_AVX512 inline __m512i load_bits(const float* finetuned, const float* base) {
  const __m512 delta = _mm512_sub_ps(_mm512_loadu_ps(finetuned), _mm512_loadu_ps(base));
  return _mm512_and_si512(_mm512_castps_si512(delta), _mm512_set1_epi32(0x7FFFFFFF));
}

TASKARITH_AVX512 inline uint64_t join(const __mmask16* m) {
  return _cvtmask64_u64(_mm512_kunpackd(_mm512_kunpackw(m[3], m[2]), _mm512_kunpackw(m[1], m[0])));
}

// Groups of 64. A first sweep counts what is above and notes the groups that touch the bracket, a second one takes
// those apart: neither has a branch that depends on the data, and mispredicted ones cost more than the arithmetic.
TASKARITH_AVX512 int64_t scan_avx512(const float* finetuned, const float* base, int64_t n, Bracket bracket,
                                     BracketCounts& counts, uint32_t* inside) {
  constexpr int64_t kAhead = 2048;  // floats: this task's next strip, fetched while the other tasks are scanned
  constexpr int64_t kGroup = 64, kGroups = 32;
  const __m512i low = _mm512_set1_epi32(static_cast<int>(bracket.low));
  const __m512i high = _mm512_set1_epi32(static_cast<int>(bracket.high));
  const __m512i top = bracket.high < kNan ? high : _mm512_set1_epi32(0x7FFFFFFF);  // any NaN's bits
  const __m512i nan = _mm512_set1_epi32(static_cast<int>(kNan));
  const __mmask16 two_values = bracket.low == bracket.high ? 0 : 0xFFFF;
  int64_t found = 0, i = 0;
  while (i + kGroup <= n) {
    int64_t touched[kGroups], num_touched = 0;
    for (int64_t g = 0; g < kGroups && i + kGroup <= n; ++g, i += kGroup) {
      __mmask16 over[4], reached[4];
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        _mm_prefetch(reinterpret_cast<const char*>(finetuned + i + 16 * u + kAhead), _MM_HINT_T0);
        const __m512i bits = load_bits(finetuned + i + 16 * u, base + i + 16 * u);
        over[u] = _mm512_cmpgt_epi32_mask(bits, top);
        reached[u] = _mm512_cmpge_epi32_mask(bits, low);
      }
      const uint64_t above = join(over);
      counts.above += __builtin_popcountll(above);
      touched[num_touched] = i;
      num_touched += join(reached) != above;
    }
    for (int64_t j = 0; j < num_touched; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const __m512i bits =
            _mm512_min_epi32(load_bits(finetuned + touched[j] + 16 * u, base + touched[j] + 16 * u), nan);
        const __mmask16 strictly = _mm512_mask_cmplt_epi32_mask(_mm512_cmpgt_epi32_mask(bits, low), bits, high);
        counts.at_high += __builtin_popcount(_mm512_cmpeq_epi32_mask(bits, high));
        counts.at_low += __builtin_popcount(_mm512_mask_cmpeq_epi32_mask(two_values, bits, low));
        _mm512_storeu_si512(inside + found, _mm512_maskz_compress_epi32(strictly, bits));
        found += __builtin_popcount(strictly);
      }
  }
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
