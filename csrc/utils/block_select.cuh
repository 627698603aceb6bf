// Exact selection by a block of threads, or by all of them: radix select on ordered integers, magnitude bits (digits of
// 11, 10 and 10 bits from the top) or keys of 32 bits (11, 11 and 10).
#pragma once

#include "math/magnitude.h"
#include "utils/device.cuh"

namespace taskarith {

constexpr int kDigits = 3, kBins = 2048;

// A digit of a value: the bits above `known` are those of the digits before, `shift` bits lie below.
struct Digit {
  int known, shift, bins;

  __device__ __forceinline__ bool follows(uint32_t bits, uint32_t prefix) const {
    return uint64_t{bits} >> known == prefix;
  }
  __device__ __forceinline__ int bin(uint32_t bits) const { return static_cast<int>(bits >> shift) & (bins - 1); }
};

// Digit d of values of so many bits.
template <int bits = 31>
__device__ __forceinline__ Digit digit(int d) {
  static_assert(bits == 31 || bits == 32);
  return d == 0 ? Digit{bits, bits - 11, 2048} : d == 1 ? Digit{bits - 11, 10, 1 << (bits - 21)} : Digit{10, 0, 1024};
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

// What is known of the value with a rank among the entries that all blocks together look at.
struct Search {
  uint32_t prefix;  // its bits so far
  int64_t rank;     // among the entries that share them
  int64_t count;    // how many these are
};

// The search with one digit more, from the counts of that digit's values, which are zero afterwards. The rank is at
// least 1. All threads of the block come, and get the same.
template <int kBlock>
__device__ __forceinline__ Search with_digit(const Search& search, const Digit& at, unsigned long long* counts) {
  const Ranked<int64_t> bin = find_rank<kBlock, kBins / kBlock>(
      search.rank, [&](int64_t b) { return b < at.bins ? static_cast<int64_t>(counts[at.bins - 1 - b]) : 0; });
  __syncthreads();
  for (int b = threadIdx.x; b < at.bins; b += kBlock) counts[b] = 0;
  return {search.prefix * at.bins + static_cast<uint32_t>(at.bins - 1 - bin.index), bin.rank, bin.count};
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
      if (at.follows(bits, prefix)) atomicAdd(&counts[at.bin(bits)], 1u);
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
