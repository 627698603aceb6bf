// TIES by mass with mean or sum, the paper's rule, in registers: both signs' totals run beside the vote, so no delta
// is stored and none is read twice. The same results as the general strips of ties_merge.
#pragma once

#include <cstdint>

#include "math/ties.h"
#include "utils/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace taskarith {
namespace {

constexpr int64_t kMassAhead = 1024;  // floats; 512 to 2048 are alike

// Eight coordinates: votes and totals in double, in the order of the tasks.
struct MassSums {
  __m512d base, vote, positive, negative;
};

TASKARITH_AVX512 inline __attribute__((always_inline)) void add_mass(MassSums& s, __m256 finetuned, __mmask8 kept,
                                                                     __mmask8 above, __mmask8 below) {
  const __m512d delta = _mm512_sub_pd(_mm512_cvtps_pd(finetuned), s.base);
  s.vote = _mm512_mask_add_pd(s.vote, kept, s.vote, delta);
  s.positive = _mm512_mask_add_pd(s.positive, above, s.positive, delta);
  s.negative = _mm512_mask_add_pd(s.negative, below, s.negative, delta);
}

struct MassResult {
  int64_t signs = 0;       // sum of the elected signs
  bool undecided = false;  // a zero vote mattered
};

TASKARITH_AVX512 inline __attribute__((always_inline)) __m256 finish_mass(const MassSums& s, __m256 above, __m256 below,
                                                                          bool mean, double undecided, double scale,
                                                                          __mmask8 valid, MassResult& result) {
  const __m512d zero = _mm512_setzero_pd();
  const __mmask8 plus = _mm512_mask_cmp_pd_mask(valid, s.vote, zero, _CMP_GT_OQ);
  const __mmask8 minus = _mm512_mask_cmp_pd_mask(valid, s.vote, zero, _CMP_LT_OQ);
  const __mmask8 open = _mm512_mask_cmp_pd_mask(valid, s.vote, zero, _CMP_EQ_OQ);
  const __mmask8 up = undecided > 0 ? plus | open : plus, down = undecided < 0 ? minus | open : minus;
  __m512d total = _mm512_mask_mov_pd(_mm512_maskz_mov_pd(up, s.positive), down, s.negative);
  if (mean) {
    const __m512d count =
        _mm512_mask_mov_pd(_mm512_maskz_mov_pd(up, _mm512_cvtps_pd(above)), down, _mm512_cvtps_pd(below));
    total = _mm512_div_pd(total, _mm512_max_pd(count, _mm512_set1_pd(1)));
  }
  result.signs += __builtin_popcount(plus) - __builtin_popcount(minus);
  result.undecided |= _mm512_mask_cmp_pd_mask(open, total, zero, _CMP_NEQ_OQ) != 0;
  return _mm512_cvtpd_ps(_mm512_fmadd_pd(_mm512_set1_pd(scale), total, s.base));
}

// n coordinates of `tasks` tasks; `thresholds` are magnitude bits, `undecided` the sign of a zero vote.
TASKARITH_AVX512 MassResult merge_mass(const float* base, const float* const* finetuned, int64_t tasks,
                                       const uint32_t* thresholds, bool mean, double undecided, double scale,
                                       float* out, int64_t n) {
  MassResult result;
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1);
  const __m512d none = _mm512_setzero_pd();
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 valid = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512 b = _mm512_maskz_loadu_ps(valid, base + i);
    MassSums low{_mm512_cvtps_pd(_mm512_castps512_ps256(b)), none, none, none};
    MassSums high{_mm512_cvtps_pd(_mm512_extractf32x8_ps(b, 1)), none, none, none};
    __m512 above = zero, below = zero;
    for (int64_t t = 0; t < tasks; ++t) {
      const __m512 f = _mm512_maskz_loadu_ps(valid, finetuned[t] + i);
      // Nine streams in step are more than the hardware's prefetchers follow: without this, half the speed.
      _mm_prefetch(reinterpret_cast<const char*>(finetuned[t] + i + kMassAhead), _MM_HINT_T0);
      const __m512 d = _mm512_sub_ps(f, b);  // only to compare: it is zero, or has a sign, when the exact delta does
      const __mmask16 kept = _mm512_cmpge_epu32_mask(_mm512_and_si512(_mm512_castps_si512(d), magnitude),
                                                     _mm512_set1_epi32(static_cast<int>(thresholds[t])));
      const __mmask16 up = _mm512_mask_cmp_ps_mask(kept, d, zero, _CMP_GT_OQ);
      const __mmask16 down = _mm512_mask_cmp_ps_mask(kept, d, zero, _CMP_LT_OQ);
      add_mass(low, _mm512_castps512_ps256(f), kept, up, down);
      add_mass(high, _mm512_extractf32x8_ps(f, 1), kept >> 8, up >> 8, down >> 8);
      above = _mm512_mask_add_ps(above, up, above, one);
      below = _mm512_mask_add_ps(below, down, below, one);
    }
    const __m256 first = finish_mass(low, _mm512_castps512_ps256(above), _mm512_castps512_ps256(below), mean, undecided,
                                     scale, valid, result);
    const __m256 second = finish_mass(high, _mm512_extractf32x8_ps(above, 1), _mm512_extractf32x8_ps(below, 1), mean,
                                      undecided, scale, valid >> 8, result);
    _mm512_mask_storeu_ps(out + i, valid, _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1));
  }
  return result;
}

}  // namespace
}  // namespace taskarith

#endif
