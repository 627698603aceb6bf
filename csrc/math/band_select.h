// The middle of a row by magnitude, without sorting: for a rank r, any threshold that exactly r entries exceed will do.
//
// A guess, counts of what exceeds it, and interpolation between the counts find one in about five passes over a row
// that lies in the first-level cache. Ties at the rank leave no such threshold; then the bracket closes on the tied
// value and positions decide: of equal magnitudes the one that comes first ranks higher.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "math/bits.h"
#include "math/ties_scan.h"

namespace taskarith {

// The `rank` highest entries: magnitude > value, or equal to it and position < cutoff.
struct Cut {
  int32_t value;
  int64_t cutoff;
};

// Where the thresholds of the last row of like values were, as multiples of the row's mean magnitude.
struct BandGuess {
  float ratio[2] = {1.5f, 1.5f};
};

namespace {

// Magnitudes as ordered integers; returns their sum.
TASKARITH_SIMD double fill_row(const float* __restrict finetuned, const float* __restrict base,
                               int32_t* __restrict bits, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = ordered_magnitude(finetuned[i] - base[i]);
    bits[i] = static_cast<int32_t>(magnitude);
    sum += __builtin_bit_cast(float, magnitude);
  }
  return sum;
}

constexpr int64_t kCountChunk = 1 << 20;  // lane counters of 32 bits suffice

TASKARITH_SIMD void count_portable(const int32_t* __restrict bits, int64_t n, const int32_t* __restrict values,
                                   int64_t* __restrict counts) {
  const int32_t a = values[0], b = values[1];
  int32_t above_a = 0, above_b = 0;
#pragma omp simd reduction(+ : above_a, above_b)
  for (int64_t i = 0; i < n; ++i) {
    above_a += bits[i] > a;
    above_b += bits[i] > b;
  }
  counts[0] += above_a;
  counts[1] += above_b;
}

#if defined(__x86_64__)
// Four accumulators: compilers keep two, and the additions then wait for each other.
TASKARITH_AVX512 inline int64_t count_avx512(const int32_t* bits, int64_t n, const int32_t* values, int64_t* counts) {
  const __m512i a = _mm512_set1_epi32(values[0]), b = _mm512_set1_epi32(values[1]), one = _mm512_set1_epi32(1);
  __m512i above[4] = {};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512i x = _mm512_loadu_si512(bits + i), y = _mm512_loadu_si512(bits + i + 16);
    above[0] = _mm512_mask_add_epi32(above[0], _mm512_cmpgt_epi32_mask(x, a), above[0], one);
    above[1] = _mm512_mask_add_epi32(above[1], _mm512_cmpgt_epi32_mask(x, b), above[1], one);
    above[2] = _mm512_mask_add_epi32(above[2], _mm512_cmpgt_epi32_mask(y, a), above[2], one);
    above[3] = _mm512_mask_add_epi32(above[3], _mm512_cmpgt_epi32_mask(y, b), above[3], one);
  }
  counts[0] += _mm512_reduce_add_epi32(_mm512_add_epi32(above[0], above[2]));
  counts[1] += _mm512_reduce_add_epi32(_mm512_add_epi32(above[1], above[3]));
  return i;
}
#endif

// counts[u] = how many of the n entries exceed values[u], for two values.
inline void count_above(const int32_t* bits, int64_t n, const int32_t* values, int64_t* counts) {
  counts[0] = counts[1] = 0;
  for (int64_t begin = 0; begin < n; begin += kCountChunk) {
    const int64_t size = std::min(kCountChunk, n - begin);
    int64_t i = 0;
#if defined(__x86_64__)
    if (has_avx512()) i = count_avx512(bits + begin, size, values, counts);
#endif
    if (i < size) count_portable(bits + begin + i, size - i, values, counts);
  }
}

// Looks for a value that exactly `rank` entries exceed, in (low, high): more than rank exceed low, fewer high.
class RankSearch {
 public:
  RankSearch(int64_t n, int64_t rank, double guess) : n_(n), rank_(rank), above_low_(n) {
    if (rank == 0) high_ = static_cast<int32_t>(kNan), found_ = true;
    if (rank >= n) high_ = -1, found_ = true;
    const float value = guess > 0 && guess < 3e38 ? static_cast<float>(guess) : 1.0f;
    next_ = __builtin_bit_cast(int32_t, value);
  }

  bool done() const { return found_ || high_ - low_ == 1; }
  bool tied() const { return !found_; }
  int32_t next() const { return done() ? high_ : next_; }
  int32_t value() const { return high_; }
  int64_t missing() const { return rank_ - above_high_; }  // how many of the tied entries belong to the rank

  // `count` entries exceed next().
  void narrow(int64_t count) {
    if (done()) return;
    if (count > rank_) {
      low_ = next_, above_low_ = count, low_seen_ = true;
    } else {
      high_ = next_, above_high_ = count, high_seen_ = true;
      found_ = count == rank_;
    }
    if (!done()) next_ = std::clamp(propose(count), low_ + 1, high_ - 1);
  }

 private:
  int32_t propose(int64_t count) {
    const int64_t middle = low_ + (static_cast<int64_t>(high_) - low_) / 2;
    if (++steps_ > 8 && steps_ % 2 == 0) return static_cast<int32_t>(middle);
    if (low_seen_ && high_seen_) {
      const double share = static_cast<double>(above_low_ - rank_) / static_cast<double>(above_low_ - above_high_);
      return static_cast<int32_t>(low_ + share * (static_cast<double>(high_) - low_));
    }
    // Around the thresholds in use a factor of two in magnitude (2^23 integers) holds 0.3 of the entries of bell
    // curves.
    const double away =
        1.3 * steps_ * (static_cast<double>(count - rank_) / (0.3 * static_cast<double>(n_))) * (1 << 23);
    return static_cast<int32_t>(std::clamp(next_ + away, -1.0, static_cast<double>(kNan)));
  }

  int64_t n_, rank_;
  int32_t low_ = -1, high_ = static_cast<int32_t>(kNan);
  int64_t above_low_, above_high_ = 0;
  bool low_seen_ = false, high_seen_ = false, found_ = false;
  int32_t next_ = 0;
  int steps_ = 0;
};

inline Cut cut_of(const RankSearch& search, const int32_t* bits) {
  if (!search.tied()) return {search.value(), 0};
  int64_t i = 0;
  for (int64_t left = search.missing(); left > 0; ++i) left -= bits[i] == search.value();
  return {search.value(), i};
}

TASKARITH_SIMD void flag_band(const int32_t* __restrict bits, int32_t removed, int32_t kept, uint8_t* __restrict flags,
                              int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) flags[i] = (bits[i] > kept) & (bits[i] <= removed);
}

inline void band_words_portable(const int32_t* bits, int64_t begin, int64_t n, int32_t removed, int32_t kept,
                                uint64_t* words) {
  for (int64_t i = begin; i < n; i += 64) {
    uint8_t flags[64] = {};
    const int64_t m = std::min<int64_t>(64, n - i);
    flag_band(bits + i, removed, kept, flags, m);
    words[i / 64] = pack_word(flags, m);
  }
}

#if defined(__x86_64__)
TASKARITH_AVX512 inline int64_t band_words_avx512(const int32_t* bits, int64_t n, int32_t removed, int32_t kept,
                                                  uint64_t* words) {
  const __m512i high = _mm512_set1_epi32(removed), low = _mm512_set1_epi32(kept);
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    uint64_t word = 0;
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const __m512i x = _mm512_loadu_si512(bits + i + 16 * u);
      const __mmask16 m = _mm512_mask_cmple_epi32_mask(_mm512_cmpgt_epi32_mask(x, low), x, high);
      word |= static_cast<uint64_t>(m) << (16 * u);
    }
    words[i / 64] = word;
  }
  return i;
}
#endif

// Bit i of `words` is set if entry i is not among the `removed` highest and is among the next `kept`.
inline void select_band(const int32_t* bits, int64_t n, double sum, int64_t removed, int64_t kept, BandGuess& guess,
                        uint64_t* words) {
  const double mean = sum / static_cast<double>(n);
  RankSearch top(n, removed, mean * guess.ratio[0]), both(n, removed + kept, mean * guess.ratio[1]);
  while (!top.done() || !both.done()) {
    const int32_t values[2] = {top.next(), both.next()};
    int64_t counts[2];
    count_above(bits, n, values, counts);
    top.narrow(counts[0]);
    both.narrow(counts[1]);
  }
  const Cut first = cut_of(top, bits), last = cut_of(both, bits);
  int64_t i = 0;
#if defined(__x86_64__)
  if (has_avx512()) i = band_words_avx512(bits, n, first.value, last.value, words);
#endif
  band_words_portable(bits, i, n, first.value, last.value, words);
  for (int64_t j = 0; j < last.cutoff; ++j)
    if (bits[j] == last.value && bits[j] <= first.value) words[j / 64] |= uint64_t{1} << (j % 64);
  for (int64_t j = 0; j < first.cutoff; ++j)
    if (bits[j] == first.value) words[j / 64] &= ~(uint64_t{1} << (j % 64));
  if (mean > 0 && mean < 3e38) {
    guess.ratio[0] = static_cast<float>(__builtin_bit_cast(float, std::max(0, first.value)) / mean);
    guess.ratio[1] = static_cast<float>(__builtin_bit_cast(float, std::max(0, last.value)) / mean);
  }
}

}  // namespace
}  // namespace taskarith
