// Exact selection in a row whose magnitudes a block holds in registers: by one histogram where the row's values are
// spread as weights' are, else by counting those from a pivot on.
#pragma once

#include "utils/block_reduce.cuh"
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
  bool done;
  int ties;  // how many of the entries that equal the cut's value belong to it; 0 if the value parts them all
  Cut cut;

  __device__ __forceinline__ CutSearch(int n, int wanted, uint32_t largest)
      : rank(wanted), many(n), few(0), low(0), high(largest + 1), done(true), ties(0), cut{kAbove, 0} {
    if (rank >= n) {
      cut = {0, n};
    } else if (rank > 0) {
      done = false;
      settle();
    }
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
    if (count == rank) return choose(pivot, 0);
    if (count > rank)
      low = pivot, many = count;
    else
      high = pivot, few = count;
    settle();
  }

  __device__ __forceinline__ void settle() {
    if (high - low == 1) choose(low, rank - few);  // the rank falls among entries that equal `low`
  }

  // The cut takes what is above `value`, and of what equals it `some`, or all for 0.
  __device__ __forceinline__ void choose(uint32_t value, int some) {
    done = true;
    ties = some;
    cut = {some ? value : value - 1, 0};
  }
};

constexpr int kBuckets = 256, kCandidates = 64;

template <int kBlock>
__device__ __forceinline__ void barrier() {
  if constexpr (kBlock == 32)
    __syncwarp();
  else
    __syncthreads();
}

// Buckets of equal width up to four times the mean magnitude; any monotone rule gives the same cuts.
struct Buckets {
  float scale;

  __device__ __forceinline__ int of(uint32_t bits) const {
    const float place = __uint_as_float(bits) * scale;
    return place < kBuckets - 1 ? static_cast<int>(place) : kBuckets - 1;  // NaN is last, too
  }
};

template <int kBlock, int kPer>
__device__ __forceinline__ Buckets make_buckets(int n, const uint32_t (&bits)[kPer]) {
  float sum[1] = {0};
#pragma unroll
  for (int j = 0; j < kPer; ++j) sum[0] += __uint_as_float(bits[j]);
  block_sum<kBlock>(sum);
  return {kBuckets / 4 * static_cast<float>(n) / sum[0]};
}

// Where a cut lies: `bucket` holds the rank-th of its entries.
struct Bucket {
  int index, rank, count;
};

// The cuts by the entries of the buckets in which they fall; false, in all threads, where one holds too many.
template <int kBlock, int kPer>
__device__ __forceinline__ bool cut_buckets(const Buckets& buckets, const uint32_t (&bits)[kPer], int n,
                                            const Bucket (&found)[2], CutSearch (&searches)[2]) {
  TASKARITH_SHARED(uint32_t, candidates, [2][kCandidates]);
  TASKARITH_SHARED(unsigned, gathered, [2]);
  TASKARITH_SHARED(uint32_t, chosen, [2][2]);
  if (threadIdx.x < 2) gathered[threadIdx.x] = 0;
  barrier<kBlock>();
#pragma unroll
  for (int c = 0; c < 2; ++c)
    if (!searches[c].done && found[c].count > kCandidates) return false;
#pragma unroll
  for (int j = 0; j < kPer; ++j) {
    if (static_cast<int>(threadIdx.x) + j * kBlock >= n) break;
    const int bucket = buckets.of(bits[j]);
#pragma unroll
    for (int c = 0; c < 2; ++c)
      if (!searches[c].done && bucket == found[c].index) candidates[c][atomicAdd(&gathered[c], 1u)] = bits[j];
  }
  barrier<kBlock>();
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (searches[c].done) continue;
    for (int i = threadIdx.x; i < found[c].count; i += kBlock) {
      const uint32_t mine = candidates[c][i];
      int above = 0, equal_before = 0, equal = 0;
      for (int other = 0; other < found[c].count; ++other) {
        above += candidates[c][other] > mine;
        equal += candidates[c][other] == mine;
        equal_before += candidates[c][other] == mine && other < i;
      }
      if (equal_before == 0 && above < found[c].rank && found[c].rank <= above + equal) {
        chosen[c][0] = mine;
        chosen[c][1] = found[c].rank == above + equal ? 0 : found[c].rank - above;  // of the equal ones; 0 for all
      }
    }
  }
  barrier<kBlock>();
#pragma unroll
  for (int c = 0; c < 2; ++c)
    if (!searches[c].done) searches[c].choose(chosen[c][0], static_cast<int>(chosen[c][1]));
  barrier<kBlock>();  // the next row writes
  return true;
}

template <int kBlock, int kPer>
__device__ __forceinline__ bool search_by_histogram(int n, const uint32_t (&bits)[kPer], CutSearch (&searches)[2]) {
  TASKARITH_SHARED(unsigned, counts, [kBuckets]);
  const Buckets buckets = make_buckets<kBlock>(n, bits);
  for (int b = threadIdx.x; b < kBuckets; b += kBlock) counts[b] = 0;
  barrier<kBlock>();
#pragma unroll
  for (int j = 0; j < kPer; ++j)
    if (static_cast<int>(threadIdx.x) + j * kBlock < n) atomicAdd(&counts[buckets.of(bits[j])], 1u);
  barrier<kBlock>();
  Bucket found[2] = {};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (searches[c].done) continue;
    const Ranked<int> place = find_rank<kBlock, kBuckets / kBlock>(
        searches[c].rank, [&](int b) { return b < kBuckets ? static_cast<int>(counts[kBuckets - 1 - b]) : 0; });
    found[c] = {kBuckets - 1 - place.index, place.rank, place.count};
    barrier<kBlock>();  // find_rank's memory is used again
  }
  return cut_buckets<kBlock>(buckets, bits, n, found, searches);
}

template <int kBlock, int kPer>
__device__ __forceinline__ void search_by_counting(const uint32_t (&bits)[kPer], CutSearch (&searches)[2]) {
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
}

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
  if (!search_by_histogram<kBlock>(n, bits, searches)) search_by_counting<kBlock>(bits, searches);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (searches[c].ties > 0) {
      const uint32_t value = searches[c].cut.value;
      const Ranked<int> last =
          find_rank<kBlock, 1>(searches[c].ties, [&](int i) { return i < n && bits_of(i) == value ? 1 : 0; });
      searches[c].cut.cutoff = last.index + 1;
      barrier<kBlock>();  // find_rank's memory is used again
    }
    cuts[c] = searches[c].cut;
  }
}

}  // namespace taskarith
