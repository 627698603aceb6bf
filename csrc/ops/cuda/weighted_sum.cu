#include "math/weighted_sum.h"
#include "ops/weighted_sum.h"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

// Pointers: out, base, tasks.
template <class T>
__device__ __forceinline__ void add_weighted(const Span<>& span, int64_t tasks, int64_t length, const double* weights) {
  constexpr int W = 16 / sizeof(T);
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    float base[W], x[W];
    double sum[W];
    load_floats<W>(span.at<const T>(1) + i, n, whole, base);
#pragma unroll
    for (int j = 0; j < W; ++j) sum[j] = base[j];
#pragma unroll 4
    for (int64_t t = 0; t < tasks; ++t) {
      const double weight = __ldg(weights + t * length + span.tensor.index);
      load_floats<W>(span.at<const T>(2 + t) + i, n, whole, x);
#pragma unroll
      for (int j = 0; j < W; ++j) sum[j] = add_weighted_delta(sum[j], weight, x[j], base[j]);
    }
#pragma unroll
    for (int j = 0; j < W; ++j) base[j] = static_cast<float>(sum[j]);
    store_floats<W>(base, n, whole, span.at<T>(0) + i);
  });
}

__global__ void __launch_bounds__(kThreads, 2) weighted_sum_kernel(const Table<> table, const double* weights) {
  for_each_span(table, [&](const Span<>& span) {
    with_storage(span.tensor.storage,
                 [&](auto zero) { add_weighted<decltype(zero)>(span, table.width - 2, table.tensors, weights); });
  });
}

TensorList weighted_sum_cuda(TensorList base, TensorList finetuned, Tensor weights) {
  check_weighted_sum(base, finetuned, weights);
  check_device("weighted_sum", base, weights);
  check_device("weighted_sum", finetuned, weights);
  const Launcher launcher("weighted_sum", weights);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  weights = torch::stable::contiguous(weights);
  TensorList out = empty_like_each(base);
  TensorTable<> tensors;
  for (size_t i = 0; i < base.size(); ++i)
    tensors.add(base[i].numel(), base[i].scalar_type(), static_cast<int64_t>(i),
                task_pointers(out[i].mutable_data_ptr(), base, finetuned, i));
  const Table<> table = tensors.view(launcher, weights);
  launch_over(launcher, table.chunks, weighted_sum_kernel, table, weights.const_data_ptr<double>());
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("weighted_sum", TORCH_BOX(&weighted_sum_cuda)); }

}  // namespace
}  // namespace taskarith
