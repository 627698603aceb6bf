// Which elements DARE keeps: Philox 4x32-10 (Salmon et al. 2011) keyed by a stream, counted by the element's index.
//
// Element e compares u(e) = 2^16 high(e) + low(e) with the density. Its half-words are those of Philox block
// (c, level), counter words (c mod 2^32, c / 2^32, level, 0), at c = 8 (e / 64) + (e mod 32) / 4, half-word
// 4 ((e / 32) mod 2) + e mod 4 (of the words in order, the lower half first): high(e) at level 0, low(e) at level 1.
// So one block decides eight elements, 64 consecutive ones need eight consecutive blocks, and the second level is
// computed only for the one element in 65,536 that the first leaves open.
#pragma once

#include <cstdint>

#include "utils/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace taskarith {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
constexpr uint32_t kPhiloxWeyl[2] = {0x9E3779B9u, 0xBB67AE85u};

struct PhiloxBlock {
  uint32_t words[4];
};

inline PhiloxBlock philox(uint64_t counter, uint32_t level, uint64_t key) {
  uint32_t x[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), level, 0};
  uint32_t k[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  for (int r = 0; r < kPhiloxRounds; ++r) {
    const uint64_t p = static_cast<uint64_t>(kPhiloxMultiplier[0]) * x[0];
    const uint64_t q = static_cast<uint64_t>(kPhiloxMultiplier[1]) * x[2];
    x[0] = static_cast<uint32_t>(q >> 32) ^ x[1] ^ k[0];
    x[1] = static_cast<uint32_t>(q);
    x[2] = static_cast<uint32_t>(p >> 32) ^ x[3] ^ k[1];
    x[3] = static_cast<uint32_t>(p);
    k[0] += kPhiloxWeyl[0];
    k[1] += kPhiloxWeyl[1];
  }
  return {{x[0], x[1], x[2], x[3]}};
}

inline uint32_t half_word(const PhiloxBlock& block, int64_t element) {
  const int64_t h = 4 * ((element / 32) % 2) + element % 4;
  return (block.words[h / 2] >> (16 * (h % 2))) & 0xFFFFu;
}

inline uint64_t counter_of(int64_t element) { return static_cast<uint64_t>(8 * (element / 64) + (element % 32) / 4); }

// Decides an element whose high(e) equals that of `last`.
inline bool low_keeps(int64_t element, uint64_t key, uint32_t last) {
  return half_word(philox(counter_of(element), 1, key), element) <= (last & 0xFFFFu);
}

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
        const uint32_t h = half_word(block, e);
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
  const __m512i m0 = _mm512_set1_epi64(kPhiloxMultiplier[0]), m1 = _mm512_set1_epi64(kPhiloxMultiplier[1]);
  const __m512i high = _mm512_set1_epi16(static_cast<int16_t>(last >> 16));
  uint64_t k0[kPhiloxRounds], k1[kPhiloxRounds];
  for (int r = 0; r < kPhiloxRounds; ++r) {
    k0[r] = static_cast<uint32_t>(key) + r * kPhiloxWeyl[0];
    k1[r] = static_cast<uint32_t>(key >> 32) + r * kPhiloxWeyl[1];
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
