// Eight elements a thread of what tall_mask and consensus compare. The tasks are read twice, the second time from the
// caches: the chunk that a block works on is small.
#pragma once

#include "math/bits.h"
#include "math/tall.h"
#include "utils/tensor_table.cuh"

namespace taskarith {

constexpr int kTall = 8;  // elements: a byte of a mask

struct TallVector {
  int64_t i;  // the first element
  int n;      // how many from it on are in the span
  float base[kTall];
  double sum[kTall];  // tau_MT
};

// Pointers: 1 is the base, 2 + t a task.
template <class T>
__device__ __forceinline__ TallVector sum_deltas(const Span<>& span, int64_t tasks, int64_t i, int n, bool whole) {
  TallVector v{i, n, {}, {}};
  load_floats<kTall>(span.at<const T>(1) + i, v.n, whole, v.base);
  float x[kTall];
  for (int64_t t = 0; t < tasks; ++t) {
    load_floats<kTall>(span.at<const T>(2 + t) + i, v.n, whole, x);
#pragma unroll
    for (int j = 0; j < kTall; ++j) v.sum[j] += static_cast<double>(x[j]) - v.base[j];
  }
  return v;
}

// Bit j: the task needs element i + j. Elements that do not exist are not needed.
template <class T>
__device__ __forceinline__ unsigned needed_bits(const Span<>& span, const TallVector& v, int64_t t, double lambda,
                                                bool whole) {
  float x[kTall];
  load_floats<kTall>(span.at<const T>(2 + t) + v.i, v.n, whole, x);
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < kTall; ++j)
    bits |= static_cast<unsigned>(is_needed(static_cast<double>(x[j]) - v.base[j], lambda, v.sum[j])) << j;
  return bits;
}

}  // namespace taskarith
