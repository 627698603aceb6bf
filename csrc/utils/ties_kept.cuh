// Which deltas TIES keeps, for a vector of elements: thresholds and cutoffs of the elements' segments.
#pragma once

#include "math/magnitude.h"
#include "ops/kth_magnitude.h"
#include "utils/tensor_table.cuh"

namespace taskarith {

// Where a tensor lies among the segments that have a threshold each.
struct SegmentInfo {
  int64_t segment;   // of the first element
  int64_t position;  // of the first element, in its segment
  int64_t row_size;  // 0 if all elements are in one segment
};

inline SegmentInfo segment_info(const Segments& segments, int64_t tensor) {
  if (segments.numels()[tensor] == 0) return {0, 0, 0};
  const Place place = segments.at(tensor, 0);
  return {place.segment, place.position, segments.scope() == Scope::kRow ? segments.segment_size(tensor) : 0};
}

struct Trim {
  const float* thresholds;  // [S, T]
  const int64_t* cutoffs;   // [S, T]
  int64_t tasks;
};

// limits[j] = the smallest magnitude of task t that is kept at element i + j, for the first n elements.
template <int W>
__device__ __forceinline__ void load_limits(const SegmentInfo& info, const Trim& trim, int64_t t, int64_t i, int n,
                                            uint32_t (&limits)[W]) {
  if (info.row_size == 0) {
    const int64_t cell = info.segment * trim.tasks + t;
    const uint32_t threshold = ordered_magnitude(__ldg(trim.thresholds + cell));
    const int64_t ties = __ldg(trim.cutoffs + cell) - info.position - i;  // kept from element i on
#pragma unroll
    for (int j = 0; j < W; ++j) limits[j] = threshold + (j < ties ? 0 : 1);
    return;
  }
  int64_t cell = (info.segment + i / info.row_size) * trim.tasks + t, column = i % info.row_size;
#pragma unroll
  for (int j = 0; j < W; ++j) {
    if (j >= n) break;  // behind the last row there is no threshold
    limits[j] = ordered_magnitude(__ldg(trim.thresholds + cell)) + (column < __ldg(trim.cutoffs + cell) ? 0 : 1);
    if (++column == info.row_size) column = 0, cell += trim.tasks;
  }
}

// deltas[j] = finetuned - base at element i + j of task t, zero where it is trimmed.
template <int W>
__device__ __forceinline__ void kept_deltas(const SegmentInfo& info, const Trim& trim, int64_t t, int64_t i, int n,
                                            const float (&base)[W], const float (&finetuned)[W], double (&deltas)[W]) {
  uint32_t limits[W] = {};
  load_limits<W>(info, trim, t, i, n, limits);
#pragma unroll
  for (int j = 0; j < W; ++j) {
    const bool kept = magnitude_bits(finetuned[j] - base[j]) >= limits[j];
    deltas[j] = kept ? static_cast<double>(finetuned[j]) - base[j] : 0.0;
  }
}

}  // namespace taskarith
