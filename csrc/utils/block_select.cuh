// Exact selection by a block of threads: radix select on magnitude bits, digits of 11, 10 and 10 bits from the top.
#pragma once

#include "math/magnitude.h"
#include "utils/device.cuh"

namespace taskarith {

constexpr int kDigits = 3, kBins = 2048;

// Digit d of a magnitude: the bits above `known` are those of the digits before, `shift` bits lie below.
struct Digit {
  int known, shift, bins;
};

__device__ __forceinline__ Digit digit(int d) {
  return d == 0 ? Digit{31, 20, 2048} : d == 1 ? Digit{20, 10, 1024} : Digit{10, 0, 1024};
}

// Numbers are of type I: int within a row, int64_t where there may be more than 2^31 entries.
template <class I>
struct Ranked {
  I index;  // the item that holds the rank-th entry
  I rank;   // among the item's entries, from 1
  I count;  // the item's entries
};

// Which item holds the rank-th entry (from 1), where item i holds count_of(i) entries, zero from some i on. The rank
// must exist. All threads of the block come; a thread looks at kPer items in turn.
template <int kBlock, int kPer, class I, class F>
__device__ __forceinline__ Ranked<I> find_rank(I rank, const F& count_of) {
  constexpr int kWarps = kBlock / 32;
  TASKARITH_SHARED(I, sums, [kWarps]);
  TASKARITH_SHARED(Ranked<I>, found, [1]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (I first = threadIdx.x * kPer;; first += kBlock * kPer) {
    I mine = 0;
    for (int j = 0; j < kPer; ++j) mine += count_of(first + j);
    I end = mine;  // entries up to this thread's last item
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const I below = __shfl_up_sync(~0u, end, step);
      if (lane >= step) end += below;
    }
    if (lane == 31) sums[warp] = end;
    __syncthreads();
    I total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) end += total;
      total += sums[w];
    }
    if (end - mine < rank && rank <= end) {
      I before = end - mine;
      int j = 0;
      for (I count; before + (count = count_of(first + j)) < rank; ++j) before += count;
      found[0] = {first + j, rank - before, count_of(first + j)};
    }
    __syncthreads();
    if (rank <= total) return found[0];
    rank -= total;
  }
}

// The highest `rank` entries of a row: those above the value, and those equal to it before the cutoff.
struct Cut {
  uint32_t value;
  int cutoff;

  __device__ __forceinline__ bool holds(uint32_t bits, int position) const {
    return bits > value || (bits == value && position < cutoff);
  }
};

// The cut of n entries with magnitudes bits_of(i), by one block; `counts` [kBins] is shared memory. All threads come,
// and get the same.
template <int kBlock, class F>
__device__ __forceinline__ Cut select_rank(int n, int rank, const F& bits_of, unsigned* counts) {
  if (rank == 0) return {kAbove, 0};
  uint32_t prefix = 0;
  bool tied = false;
#pragma unroll 1
  for (int d = 0; d < kDigits; ++d) {
    const Digit at = digit(d);
    for (int b = threadIdx.x; b < at.bins; b += kBlock) counts[b] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kBlock) {
      const uint32_t bits = bits_of(i);
      if (bits >> at.known == prefix) atomicAdd(&counts[(bits >> at.shift) & (at.bins - 1)], 1u);
    }
    __syncthreads();
    const Ranked<int> bin = find_rank<kBlock, kBins / kBlock>(
        rank, [&](int b) { return b < at.bins ? static_cast<int>(counts[at.bins - 1 - b]) : 0; });
    prefix = prefix * at.bins + static_cast<uint32_t>(at.bins - 1 - bin.index);
    rank = bin.rank;
    tied = bin.rank < bin.count;
    __syncthreads();
  }
  if (!tied) return {prefix, n};
  const Ranked<int> last = find_rank<kBlock, 1>(rank, [&](int i) { return i < n && bits_of(i) == prefix ? 1 : 0; });
  __syncthreads();
  return {prefix, last.index + 1};
}

}  // namespace taskarith
