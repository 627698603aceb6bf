#include "ops/tall_mask.h"
#include "utils/tall_vector.cuh"

namespace taskarith {
namespace {

// A row of the result [T, packed_size(numel)] for every task: a byte a thread, so 32 neighbours write 32 bytes.
template <class T>
__device__ __forceinline__ void write_masks(const Span<>& span, int64_t tasks, const double* lambdas) {
  for_each_vector<kTall>(span, [&](int64_t i, int n, auto whole) {
    const TallVector v = sum_deltas<T>(span, tasks, i, n, whole);
    uint8_t* out = span.at<uint8_t>(0) + i / 8;
    for (int64_t t = 0; t < tasks; ++t)
      out[t * packed_size(span.tensor.numel)] =
          static_cast<uint8_t>(needed_bits<T>(span, v, t, __ldg(lambdas + t), whole));
  });
}

__global__ void __launch_bounds__(kThreads) tall_mask_kernel(const Table<> table, const double* lambdas) {
  for_each_span(table, [&](const Span<>& span) {
    with_storage(span.tensor.storage, [&](auto zero) { write_masks<decltype(zero)>(span, table.width - 2, lambdas); });
  });
}

TensorList tall_mask_cuda(TensorList base, TensorList finetuned, Tensor lambdas) {
  const int64_t tasks = check_tall_mask("tall_mask", base, finetuned, lambdas);
  check_device("tall_mask", base, lambdas);
  check_device("tall_mask", finetuned, lambdas);
  const Launcher launcher("tall_mask", lambdas);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  lambdas = torch::stable::contiguous(lambdas);
  TensorList out;
  TensorTable<> tensors;
  for (size_t i = 0; i < base.size(); ++i) {
    out.push_back(torch::stable::new_empty(base[i], {tasks, packed_size(base[i].numel())}, ScalarType::Byte));
    tensors.add(base[i].numel(), base[i].scalar_type(), static_cast<int64_t>(i),
                task_pointers(out[i].mutable_data_ptr(), base, finetuned, i));
  }
  const Table<> table = tensors.view(launcher, lambdas);
  launch_over(launcher, table.chunks, tall_mask_kernel, table, lambdas.const_data_ptr<double>());
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("tall_mask", TORCH_BOX(&tall_mask_cuda)); }

}  // namespace
}  // namespace taskarith
