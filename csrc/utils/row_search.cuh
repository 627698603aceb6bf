// Exact selection in a row whose magnitudes a block holds in registers, by counting those from a pivot on.
#pragma once

#include "utils/block_select.cuh"

namespace taskarith {

// Sums of all threads' `mine`, in every thread. `turn` is the same in all threads and changes from call to call: two
// sets of sums spare a barrier.
template <int kBlock>
__device__ __forceinline__ uint32_t count_in_block(uint32_t mine, int turn) {
  mine = __reduce_add_sync(~0u, mine);
  if constexpr (kBlock == 32) return mine;
  constexpr int kWarps = kBlock / 32;
  TASKARITH_SHARED(uint32_t, sums, [2][kWarps]);
  uint32_t* of_turn = sums[turn & 1];
  if (threadIdx.x % 32 == 0) of_turn[threadIdx.x / 32] = mine;
  __syncthreads();
  uint32_t total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += of_turn[warp];
  return total;
}

template <int kBlock>
__device__ __forceinline__ uint32_t largest_in_block(uint32_t mine) {
  mine = __reduce_max_sync(~0u, mine);
  if constexpr (kBlock == 32) return mine;
  constexpr int kWarps = kBlock / 32;
  TASKARITH_SHARED(uint32_t, largest, [kWarps]);
  __syncthreads();  // the last call's readers are done
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = mine;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) mine = max(mine, largest[warp]);
  return mine;
}

// The search for a cut: more than `rank` magnitudes are at least `low`, fewer are at least `high`.
struct CutSearch {
  int rank, many, few;
  uint32_t low, high;
  bool done, tied;
  Cut cut;

  __device__ __forceinline__ CutSearch(int n, int wanted, uint32_t largest)
      : rank(wanted), many(n), few(0), low(0), high(largest + 1), done(true), tied(false), cut{kAbove, 0} {
    if (rank >= n)
      cut = {0, n};
    else if (rank > 0)
      settle();
  }

  // Magnitudes of a row are near normal: the logarithm of the count is near linear in the square. Each fourth pivot
  // halves the bracket, so that any row ends.
  __device__ __forceinline__ uint32_t pivot(int turn) const {
    const float a = __uint_as_float(low), b = __uint_as_float(high);
    const float above = __logf(static_cast<float>(many)), below = __logf(few + 0.5f);
    const float part = (above - __logf(static_cast<float>(rank))) / (above - below);
    const uint32_t guess = __float_as_uint(sqrtf(a * a + (b * b - a * a) * part));
    return turn % 4 < 3 && guess > low && guess < high ? guess : low + (high - low) / 2;
  }

  __device__ __forceinline__ void learn(uint32_t pivot, int count) {
    if (count == rank) {
      cut = {pivot - 1, 0};
      done = true;
      return;
    }
    if (count > rank)
      low = pivot, many = count;
    else
      high = pivot, few = count;
    settle();
  }

  __device__ __forceinline__ void settle() {
    tied = done = high - low == 1;  // the rank falls among entries that equal `low`
    cut.value = low;
  }
};

// The cuts after `ranks` highest entries of a row: bits[j] is the magnitude of entry threadIdx.x + j kBlock, zero
// behind the end n < 2^16; bits_of(i) gives entry i's again. All threads come, and get the same.
template <int kBlock, int kPer, class F>
__device__ __forceinline__ void find_cuts(int n, const int (&ranks)[2], const uint32_t (&bits)[kPer], const F& bits_of,
                                          Cut (&cuts)[2]) {
  uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < kPer; ++j) largest = max(largest, bits[j]);
  largest = largest_in_block<kBlock>(largest);
  CutSearch searches[2] = {{n, ranks[0], largest}, {n, ranks[1], largest}};
#pragma unroll 1
  for (int turn = 0; !(searches[0].done && searches[1].done); ++turn) {
    uint32_t pivots[2], mine = 0;
#pragma unroll
    for (int c = 0; c < 2; ++c) pivots[c] = searches[c].done ? kAbove : searches[c].pivot(turn);
#pragma unroll
    for (int j = 0; j < kPer; ++j) mine += (bits[j] >= pivots[0]) + ((bits[j] >= pivots[1]) << 16);
    const uint32_t counts = count_in_block<kBlock>(mine, turn);
    if (!searches[0].done) searches[0].learn(pivots[0], static_cast<int>(counts & 0xFFFFu));
    if (!searches[1].done) searches[1].learn(pivots[1], static_cast<int>(counts >> 16));
  }
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (searches[c].tied) {
      const uint32_t value = searches[c].low;
      const Ranked<int> last = find_rank<kBlock, 1>(searches[c].rank - searches[c].few,
                                                    [&](int i) { return i < n && bits_of(i) == value ? 1 : 0; });
      searches[c].cut.cutoff = last.index + 1;
      __syncthreads();  // find_rank's memory is used again
    }
    cuts[c] = searches[c].cut;
  }
}

}  // namespace taskarith
