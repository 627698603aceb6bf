#include "ops/weighted_sum_backward.h"
#include "utils/block_reduce.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int kGroup = 4;  // tasks whose sums a thread holds at once

// sums[u] += <grad, finetuned[first + u] - base> of this thread's elements. Pointer 0 is the gradient.
template <class T>
__device__ __forceinline__ void add_products(const Span<>& span, int64_t first, int64_t tasks, double (&sums)[kGroup]) {
  constexpr int W = 16 / sizeof(T);
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    float grad[W], base[W], finetuned[W];
    load_floats<W>(span.at<const T>(0) + i, n, whole, grad);
    load_floats<W>(span.at<const T>(1) + i, n, whole, base);
#pragma unroll
    for (int u = 0; u < kGroup; ++u) {
      if (first + u >= tasks) break;
      load_floats<W>(span.at<const T>(2 + first + u) + i, n, whole, finetuned);
#pragma unroll
      for (int j = 0; j < W; ++j) sums[u] += grad[j] * (static_cast<double>(finetuned[j]) - base[j]);
    }
  });
}

// partial [chunks, T]
__global__ void __launch_bounds__(kThreads) weighted_sum_backward_kernel(const Table<> table, double* partial) {
  const int64_t tasks = table.width - 2;
  for_each_span(table, [&](const Span<>& span) {
    for (int64_t first = 0; first < tasks; first += kGroup) {
      double sums[kGroup] = {};
      with_storage(span.tensor.storage, [&](auto zero) { add_products<decltype(zero)>(span, first, tasks, sums); });
      block_sum<kThreads>(sums);
      if (threadIdx.x == 0)
#pragma unroll
        for (int u = 0; u < kGroup; ++u)
          if (first + u < tasks) partial[span.chunk * tasks + first + u] = sums[u];
    }
  });
}

// A block for each number of the result [T, L].
__global__ void __launch_bounds__(kThreads)
    add_partial_kernel(const Table<> table, const double* partial, double* out) {
  const int64_t tasks = table.width - 2;
  for (int64_t k = blockIdx.x; k < tasks * table.tensors; k += gridDim.x) {
    const int64_t t = k / table.tensors, i = k % table.tensors;
    const int64_t begin = table.entries[i].first_chunk;
    const int64_t end = i + 1 < table.tensors ? table.entries[i + 1].first_chunk : table.chunks;
    double sum[1] = {0};
    for (int64_t chunk = begin + threadIdx.x; chunk < end; chunk += kThreads) sum[0] += partial[chunk * tasks + t];
    block_sum<kThreads>(sum);
    if (threadIdx.x == 0) out[k] = sum[0];
  }
}

Tensor weighted_sum_backward_cuda(TensorList grads, TensorList base, TensorList finetuned) {
  const int64_t tasks = check_weighted_sum_backward(grads, base, finetuned);
  const int64_t length = static_cast<int64_t>(base.size());
  for (const TensorList* list : {&grads, &base, &finetuned}) check_device("weighted_sum_backward", *list, base[0]);
  const Launcher launcher("weighted_sum_backward", base[0]);
  grads = contiguous(grads);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  TensorTable<> tensors;
  for (int64_t i = 0; i < length; ++i)
    tensors.add(base[i].numel(), base[i].scalar_type(), i,
                task_pointers(grads[i].const_data_ptr(), base, finetuned, i));
  const Table<> table = tensors.view(launcher, base[0]);
  Tensor partial = torch::stable::new_empty(base[0], {table.chunks, tasks}, ScalarType::Double);
  Tensor out = torch::stable::new_empty(base[0], {tasks, length}, ScalarType::Double);
  double* sums = partial.mutable_data_ptr<double>();
  launch_over(launcher, table.chunks, weighted_sum_backward_kernel, table, sums);
  launch_over(launcher, tasks * length, add_partial_kernel, table, sums, out.mutable_data_ptr<double>());
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("weighted_sum_backward", TORCH_BOX(&weighted_sum_backward_cuda)); }

}  // namespace
}  // namespace taskarith
