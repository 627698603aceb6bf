#include "math/philox.h"
#include "math/weighted_sum.h"
#include "ops/dare.h"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int W = 4;  // what a Philox block decides; eight half-precision values at once take too many registers

struct Draw {
  const double* weights;   // [T, L]
  const int64_t* streams;  // [T, L]
  const int64_t* begins;   // [L]
  uint32_t last;
};

// Which of the elements e .. e + 3 (lower bits) and e + 32 .. e + 35 are kept: a Philox block decides these.
__device__ __forceinline__ uint32_t keep_bits(uint64_t key, int64_t e, uint32_t last) {
  const uint32_t high = last >> 16;
  const PhiloxBlock block = philox(counter_of(e), 0, key);
  uint32_t kept = 0, open = 0;
#pragma unroll
  for (int half = 0; half < 2 * W; ++half) {
    const uint32_t drawn = half_word(block, half);
    kept |= static_cast<uint32_t>(drawn < high) << half;
    open |= static_cast<uint32_t>(drawn == high) << half;
  }
  for (; open; open &= open - 1) {
    const int half = __ffs(static_cast<int>(open)) - 1;
    kept |= static_cast<uint32_t>(low_keeps(e + half % W + half / W * 32, key, last)) << half;
  }
  return kept;
}

// Elements i .. i + 3 and those that lie 32 further on; n are left from i on.
template <class T>
__device__ __forceinline__ void add_kept(const Span<>& span, int64_t i, int n, bool whole, int64_t tasks,
                                         int64_t length, const Draw& draw) {
  float base[2][W], x[W];
  double sum[2][W];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    load_floats<W>(span.at<const T>(1) + i + 32 * h, n - 32 * h, whole, base[h]);
#pragma unroll
    for (int j = 0; j < W; ++j) sum[h][j] = base[h][j];
  }
  const int64_t element = __ldg(draw.begins + span.tensor.index) + i;
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t cell = t * length + span.tensor.index;
    const double weight = __ldg(draw.weights + cell);
    const uint32_t kept = keep_bits(static_cast<uint64_t>(__ldg(draw.streams + cell)), element, draw.last);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      load_floats<W>(span.at<const T>(2 + t) + i + 32 * h, n - 32 * h, whole, x);
#pragma unroll
      for (int j = 0; j < W; ++j)
        if ((kept >> (h * W + j)) & 1) sum[h][j] = add_weighted_delta(sum[h][j], weight, x[j], base[h][j]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int j = 0; j < W; ++j) x[j] = static_cast<float>(sum[h][j]);
    store_floats<W>(x, n - 32 * h, whole, span.at<T>(0) + i + 32 * h);
  }
}

template <class T>
__device__ __forceinline__ void add_kept(const Span<>& span, int64_t tasks, int64_t length, const Draw& draw) {
  constexpr int kPerWord = 32 / W;
  for (int64_t k = threadIdx.x; span.begin + k / kPerWord * 64 < span.end; k += kThreads) {
    const int64_t i = span.begin + k / kPerWord * 64 + k % kPerWord * W;
    const int n = static_cast<int>(span.end - i);
    if (span.tensor.aligned && n >= 32 + W)
      add_kept<T>(span, i, n, Constant<true>{}, tasks, length, draw);
    else
      add_kept<T>(span, i, n, Constant<false>{}, tasks, length, draw);
  }
}

__global__ void __launch_bounds__(kThreads) dare_kernel(const Table<> table, const Draw draw) {
  for_each_span(table, [&](const Span<>& span) {
    with_storage(span.tensor.storage,
                 [&](auto zero) { add_kept<decltype(zero)>(span, table.width - 2, table.tensors, draw); });
  });
}

TensorList dare_cuda(TensorList base, TensorList finetuned, Tensor weights, Tensor streams, int64_t threshold,
                     Tensor begins) {
  check_dare(base, finetuned, weights, streams, threshold, begins);
  check_device("dare", base, weights);
  check_device("dare", finetuned, weights);
  check_device("dare", {streams, begins}, weights);
  const Launcher launcher("dare", weights);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  weights = torch::stable::contiguous(weights);
  streams = torch::stable::contiguous(streams);
  begins = torch::stable::contiguous(begins);
  TensorList out = empty_like_each(base);
  TensorTable<> tensors;
  for (size_t i = 0; i < base.size(); ++i)
    tensors.add(base[i].numel(), base[i].scalar_type(), static_cast<int64_t>(i),
                task_pointers(out[i].mutable_data_ptr(), base, finetuned, i));
  const Table<> table = tensors.view(launcher, weights);
  const Draw draw{weights.const_data_ptr<double>(), streams.const_data_ptr<int64_t>(), begins.const_data_ptr<int64_t>(),
                  static_cast<uint32_t>(threshold - 1)};
  launch_over(launcher, table.chunks, dare_kernel, table, draw);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("dare", TORCH_BOX(&dare_cuda)); }

}  // namespace
}  // namespace taskarith
