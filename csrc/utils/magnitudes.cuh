// Magnitudes |finetuned - base| of a span: pointer 0 is the base, pointer 1 + t task t.
#pragma once

#include "utils/block_select.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {

// f(magnitude) for this thread's elements.
template <class T, class Info, class F>
__device__ __forceinline__ void for_magnitudes(const Span<Info>& span, int64_t t, const F& f) {
  constexpr int W = 16 / sizeof(T);
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    float base[W], finetuned[W];
    load_floats<W>(span.template at<const T>(0) + i, n, whole, base);
    load_floats<W>(span.template at<const T>(1 + t) + i, n, whole, finetuned);
#pragma unroll
    for (int j = 0; j < W; ++j)
      if (j < n) f(ordered_magnitude(finetuned[j] - base[j]));
  });
}

// The position in the tensor after the rank-th entry of the span that equals `value`. All threads of the block come.
template <class T, class Info>
__device__ __forceinline__ int64_t end_of_rank(const Span<Info>& span, int64_t t, uint32_t value, int rank) {
  const T* base = span.template at<const T>(0) + span.begin;
  const T* finetuned = span.template at<const T>(1 + t) + span.begin;
  const int n = static_cast<int>(span.end - span.begin);
  const Ranked<int> last = find_rank<kThreads, 1>(rank, [&](int i) {
    return i < n && ordered_magnitude(to_float(finetuned[i]) - to_float(base[i])) == value ? 1 : 0;
  });
  return span.begin + last.index + 1;
}

}  // namespace taskarith
