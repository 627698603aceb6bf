#include "ops/consensus.h"
#include "utils/tall_vector.cuh"

namespace taskarith {
namespace {

template <class T>
__device__ __forceinline__ void add_agreed(const Span<>& span, int64_t tasks, const double* lambdas, int64_t threshold,
                                           double scale) {
  for_each_vector<kTall>(span, [&](int64_t i, int n, auto whole) {
    TallVector v = sum_deltas<T>(span, tasks, i, n, whole);
    int votes[kTall] = {};
    for (int64_t t = 0; t < tasks; ++t) {
      const unsigned bits = needed_bits<T>(span, v, t, __ldg(lambdas + t), whole);
#pragma unroll
      for (int j = 0; j < kTall; ++j) votes[j] += (bits >> j) & 1;
    }
#pragma unroll
    for (int j = 0; j < kTall; ++j)
      if (votes[j] >= threshold) v.base[j] = static_cast<float>(v.base[j] + scale * v.sum[j]);
    store_floats<kTall>(v.base, v.n, whole, span.at<T>(0) + i);
  });
}

__global__ void __launch_bounds__(kThreads)
    consensus_kernel(const Table<> table, const double* lambdas, int64_t threshold, double scale) {
  for_each_span(table, [&](const Span<>& span) {
    with_storage(span.tensor.storage,
                 [&](auto zero) { add_agreed<decltype(zero)>(span, table.width - 2, lambdas, threshold, scale); });
  });
}

TensorList consensus_cuda(TensorList base, TensorList finetuned, Tensor lambdas, int64_t threshold, double scale) {
  check_consensus(base, finetuned, lambdas, threshold);
  check_device("consensus", base, lambdas);
  check_device("consensus", finetuned, lambdas);
  const Launcher launcher("consensus", lambdas);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  lambdas = torch::stable::contiguous(lambdas);
  TensorList out = empty_like_each(base);
  TensorTable<> tensors;
  for (size_t i = 0; i < base.size(); ++i)
    tensors.add(base[i].numel(), base[i].scalar_type(), static_cast<int64_t>(i),
                task_pointers(out[i].mutable_data_ptr(), base, finetuned, i));
  const Table<> table = tensors.view(launcher, lambdas);
  launch_over(launcher, table.chunks, consensus_kernel, table, lambdas.const_data_ptr<double>(), threshold, scale);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("consensus", TORCH_BOX(&consensus_cuda)); }

}  // namespace
}  // namespace taskarith
