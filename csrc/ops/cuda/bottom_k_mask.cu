#include "math/score_key.h"
#include "ops/bottom_k_mask.h"
#include "utils/block_reduce.cuh"
#include "utils/block_select.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int W = 8;  // entries that a thread takes at once: a byte of bits

enum MaskPointer : int64_t { kScores, kOut, kExcluded };

// Of the entries that equal the value, those of earlier chunks are chosen, and of this one those before `end`.
struct LastTie {
  int64_t chunk, end;
};

struct Choice {
  Search* search;
  unsigned long long* counts;  // [kBins]
  int64_t* equal;              // [chunks]: entries that equal the value, where some of them are not chosen
  LastTie* last;
  uint32_t flip;
};

__device__ __forceinline__ unsigned excluded_bits(const Span<>& span, int64_t i) {
  const uint8_t* bits = span.at<const uint8_t>(kExcluded);
  return bits ? bits[i / W] : 0u;
}

// f(i, n, keys) for this thread's entries i .. i + 7 of the span, n of which exist; the others have key 0, as excluded
// ones do.
template <class F>
__device__ __forceinline__ void for_keys(const Span<>& span, uint32_t flip, const F& f) {
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    float scores[W];
    load_floats<W>(span.at<const float>(kScores) + i, n, whole, scores);
    const unsigned out = excluded_bits(span, i);
    uint32_t keys[W];
#pragma unroll
    for (int j = 0; j < W; ++j) keys[j] = (whole || j < n) && !(out >> j & 1) ? score_key(scores[j], flip) : 0u;
    f(i, n, keys);
  });
}

// Counts in shared memory; equal digits in a row, such as those of many zeros, go there together.
class DigitCounter {
 public:
  __device__ __forceinline__ explicit DigitCounter(unsigned* counts) : counts_(counts) {}
  __device__ __forceinline__ void add(int bin) {
    if (bin != bin_) flush(), bin_ = bin;
    ++count_;
  }
  __device__ __forceinline__ void flush() {
    if (count_) atomicAdd(&counts_[bin_], count_);
    count_ = 0;
  }

 private:
  unsigned* counts_;
  int bin_ = 0;
  unsigned count_ = 0;
};

__global__ void __launch_bounds__(kThreads, 4) count_digits_kernel(const Table<> table, const Choice x, const int d) {
  TASKARITH_SHARED(unsigned, counts, [kBins]);
  const Digit at = digit<32>(d);
  const Search search = d == 0 ? Search{0, 1, 0} : *x.search;
  if (search.rank == 0) return;
  for (int b = threadIdx.x; b < at.bins; b += kThreads) counts[b] = 0;
  __syncthreads();
  DigitCounter counter(counts);
  for_each_span(table, [&](const Span<>& span) {
    for_keys(span, x.flip, [&](int64_t, int, const uint32_t (&keys)[W]) {
#pragma unroll
      for (int j = 0; j < W; ++j)
        if (keys[j] && at.follows(keys[j], search.prefix)) counter.add(at.bin(keys[j]));
    });
  });
  counter.flush();
  __syncthreads();
  for (int b = threadIdx.x; b < at.bins; b += kThreads)
    if (counts[b]) atomicAdd(x.counts + b, static_cast<unsigned long long>(counts[b]));
}

// One block. A k above the number of candidates, which the host cannot check, takes them all.
__global__ void __launch_bounds__(kThreads) choose_digit_kernel(const Choice x, const int d, const int64_t k) {
  const Digit at = digit<32>(d);
  Search search = *x.search;
  if (d == 0) {
    int64_t candidates[1] = {0};
    for (int b = threadIdx.x; b < at.bins; b += kThreads) candidates[0] += static_cast<int64_t>(x.counts[b]);
    block_sum<kThreads>(candidates);
    search = {0, k < candidates[0] ? k : candidates[0], 0};
  } else if (search.rank == 0) {
    return;
  }
  if (search.rank > 0) search = with_digit<kThreads>(search, at, x.counts);
  if (threadIdx.x == 0) *x.search = search;
}

__global__ void __launch_bounds__(kThreads, 4) count_equal_kernel(const Table<> table, const Choice x) {
  const Search search = *x.search;
  if (search.rank == search.count) return;
  for_each_span(table, [&](const Span<>& span) {
    int equal[1] = {0};
    for_keys(span, x.flip, [&](int64_t, int, const uint32_t (&keys)[W]) {
#pragma unroll
      for (int j = 0; j < W; ++j) equal[0] += keys[j] == search.prefix;
    });
    block_sum<kThreads>(equal);
    if (threadIdx.x == 0) x.equal[span.chunk] = equal[0];
  });
}

// One block.
__global__ void __launch_bounds__(kThreads) find_last_tie_kernel(const Table<> table, const Choice x) {
  const Search search = *x.search;
  LastTie last{search.rank > 0 ? table.chunks : -1, 0};
  if (search.rank < search.count) {
    const Ranked<int64_t> chunk =
        find_rank<kThreads, W>(search.rank, [&](int64_t c) { return c < table.chunks ? x.equal[c] : int64_t{0}; });
    __syncthreads();
    const Span<> span = span_of(table, chunk.index);
    const int n = static_cast<int>(span.end - span.begin);
    const Ranked<int> tie = find_rank<kThreads, W>(static_cast<int>(chunk.rank), [&](int j) {
      const int64_t i = span.begin + j;
      return j < n && !(excluded_bits(span, i) >> (i % W) & 1) &&
                     score_key(span.at<const float>(kScores)[i], x.flip) == search.prefix
                 ? 1
                 : 0;
    });
    last = {chunk.index, span.begin + tie.index + 1};
  }
  if (threadIdx.x == 0) *x.last = last;
}

// A byte a thread, so 32 neighbours write 32 bytes.
__global__ void __launch_bounds__(kThreads, 4) bottom_k_mask_kernel(const Table<> table, const Choice x) {
  const Search search = *x.search;
  const LastTie last = *x.last;
  for_each_span(table, [&](const Span<>& span) {
    const int64_t end = span.chunk < last.chunk ? span.end : span.chunk == last.chunk ? last.end : span.begin;
    for_keys(span, x.flip, [&](int64_t i, int, const uint32_t (&keys)[W]) {
      unsigned byte = 0;
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const bool chosen = keys[j] > search.prefix || (keys[j] == search.prefix && i + j < end);
        byte |= static_cast<unsigned>(chosen && search.rank > 0) << j;
      }
      span.at<uint8_t>(kOut)[i / W] = static_cast<uint8_t>(byte);
    });
  });
}

TensorList bottom_k_mask_cuda(TensorList scores, TensorList excluded, int64_t k, bool largest) {
  constexpr const char* kOp = "bottom_k_mask";
  check_bottom_k_mask(scores, excluded, k);
  for (const TensorList* list : {&scores, &excluded}) check_device(kOp, *list, scores[0]);
  const Launcher launcher(kOp, scores[0]);
  scores = contiguous(scores);
  TensorList out;
  TensorTable<> tensors;
  for (size_t i = 0; i < scores.size(); ++i) {
    const int64_t numel = scores[i].numel();
    out.push_back(torch::stable::new_empty(scores[i], {packed_size(numel)}, ScalarType::Byte));
    tensors.add(numel, ScalarType::Float, static_cast<int64_t>(i), {scores[i].const_data_ptr()},
                {out[i].mutable_data_ptr(), excluded.empty() ? nullptr : excluded[i].const_data_ptr()});
  }
  const Table<> table = tensors.view(launcher, scores[0]);
  const auto words = [&](int64_t size) { return torch::stable::new_empty(scores[0], {size}, ScalarType::Long); };
  const Tensor search = words(sizeof(Search) / 8), last = words(sizeof(LastTie) / 8), equal = words(table.chunks);
  const Tensor counts = torch::stable::new_zeros(scores[0], {kBins}, ScalarType::Long);
  const Choice x{static_cast<Search*>(search.mutable_data_ptr()),
                 static_cast<unsigned long long*>(counts.mutable_data_ptr()),
                 static_cast<int64_t*>(equal.mutable_data_ptr()), static_cast<LastTie*>(last.mutable_data_ptr()),
                 largest ? 0u : ~0u};
  for (int d = 0; d < kDigits; ++d) {
    launch_over(launcher, table.chunks, count_digits_kernel, table, x, d);
    launch_over(launcher, 1, choose_digit_kernel, x, d, k);
  }
  launch_over(launcher, table.chunks, count_equal_kernel, table, x);
  launch_over(launcher, 1, find_last_tie_kernel, table, x);
  launch_over(launcher, table.chunks, bottom_k_mask_kernel, table, x);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("bottom_k_mask", TORCH_BOX(&bottom_k_mask_cuda)); }

}  // namespace
}  // namespace taskarith
