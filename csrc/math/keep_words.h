// DARE's masks of the CPU kernel: 64 elements a word, eight Philox blocks at once where the processor can.
#pragma once

#include <cstdint>

#include "math/philox.h"
#include "utils/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace taskarith {
namespace {

// Bit i of words[w] is set if element `first` + 64 w + i is kept, that is if u <= last. `first` is a multiple of 64.
inline void keep_words_portable(uint64_t key, int64_t first, int64_t count, uint32_t last, uint64_t* words) {
  const uint32_t high = last >> 16;
  for (int64_t w = 0; w < count; ++w) {
    words[w] = 0;
    for (int64_t j = 0; j < 8; ++j) {
      const int64_t begin = first + 64 * w + 4 * j;
      const PhiloxBlock block = philox(counter_of(begin), 0, key);
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t e = begin + 32 * (i / 4) + i % 4;
        const uint32_t h = half_word(block, half_of(e));
        const bool kept = h < high || (h == high && low_keeps(e, key, last));
        words[w] |= static_cast<uint64_t>(kept) << (e - first - 64 * w);
      }
    }
  }
}

#if defined(__x86_64__)
// Eight blocks at once, a word of each in the lower half of a 64-bit lane; the upper halves hold leftovers, which
// vpmuludq does not read.
TASKARITH_AVX512 inline void keep_words_avx512(uint64_t key, int64_t first, int64_t count, uint32_t last,
                                               uint64_t* words) {
  const __m512i m0 = _mm512_set1_epi64(kPhiloxMultiplier0), m1 = _mm512_set1_epi64(kPhiloxMultiplier1);
  const __m512i high = _mm512_set1_epi16(static_cast<int16_t>(last >> 16));
  uint64_t k0[kPhiloxRounds], k1[kPhiloxRounds];
  for (int r = 0; r < kPhiloxRounds; ++r) {
    k0[r] = static_cast<uint32_t>(key) + r * kPhiloxWeyl0;
    k1[r] = static_cast<uint32_t>(key >> 32) + r * kPhiloxWeyl1;
  }
  __m512i counter = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(counter_of(first))),
                                     _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  for (int64_t w = 0; w < count; ++w) {
    __m512i x0 = counter, x1 = _mm512_srli_epi64(counter, 32), x2 = _mm512_setzero_si512(), x3 = x2;
    counter = _mm512_add_epi64(counter, _mm512_set1_epi64(8));
#pragma GCC unroll 10
    for (int r = 0; r < kPhiloxRounds; ++r) {
      const __m512i p = _mm512_mul_epu32(m0, x0), q = _mm512_mul_epu32(m1, x2);
      x0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(q, 32), x1, _mm512_set1_epi64(k0[r]), 0x96);
      x2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p, 32), x3, _mm512_set1_epi64(k1[r]), 0x96);
      x1 = q;
      x3 = p;
    }
    const __m512i lower = _mm512_mask_shuffle_epi32(x0, 0xAAAA, x1, _MM_PERM_CCAA);
    const __m512i upper = _mm512_mask_shuffle_epi32(x2, 0xAAAA, x3, _MM_PERM_CCAA);
    uint64_t word = _mm512_cmplt_epu16_mask(lower, high) | static_cast<uint64_t>(_mm512_cmplt_epu16_mask(upper, high))
                                                               << 32;
    uint64_t open = _mm512_cmpeq_epu16_mask(lower, high) | static_cast<uint64_t>(_mm512_cmpeq_epu16_mask(upper, high))
                                                               << 32;
    for (; open; open &= open - 1) {
      const int i = __builtin_ctzll(open);
      word |= static_cast<uint64_t>(low_keeps(first + 64 * w + i, key, last)) << i;
    }
    words[w] = word;
  }
}
#endif

inline void keep_words(uint64_t key, int64_t first, int64_t count, uint32_t last, uint64_t* words) {
#if defined(__x86_64__)
  if (has_avx512()) return keep_words_avx512(key, first, count, last, words);
#endif
  keep_words_portable(key, first, count, last, words);
}

}  // namespace
}  // namespace taskarith
