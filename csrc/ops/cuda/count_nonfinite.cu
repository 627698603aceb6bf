#include "utils/block_reduce.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

// NaN and infinity are the values whose exponent is all ones.
template <class Word>
__device__ __forceinline__ int count_all_ones(const Span<>& span, Word exponent) {
  constexpr int W = 16 / sizeof(Word);
  int count = 0;
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    Word bits[W];
    load_some<W>(span.at<const Word>(0) + i, n, whole, bits);
#pragma unroll
    for (int j = 0; j < W; ++j) count += (bits[j] & exponent) == exponent;
  });
  return count;
}

__global__ void __launch_bounds__(kThreads) count_nonfinite_kernel(const Table<> table, unsigned long long* counts) {
  for_each_span(table, [&](const Span<>& span) {
    const Storage storage = span.tensor.storage;
    int count = storage == Storage::kFloat
                    ? count_all_ones<uint32_t>(span, 0x7F800000u)
                    : count_all_ones<uint16_t>(span, storage == Storage::kHalf ? 0x7C00 : 0x7F80);
    count = warp_sum(count);
    if (threadIdx.x % 32 == 0 && count > 0)
      atomicAdd(counts + span.tensor.index, static_cast<unsigned long long>(count));
  });
}

Tensor count_nonfinite_cuda(TensorList tensors) {
  check_device("count_nonfinite", tensors, tensors[0]);
  for (const Tensor& x : tensors)
    STD_TORCH_CHECK(is_storage_type(x.scalar_type()), "count_nonfinite: float32, bfloat16 or float16");
  const Launcher launcher("count_nonfinite", tensors[0]);
  tensors = contiguous(tensors);
  TensorTable<> list;
  for (size_t i = 0; i < tensors.size(); ++i)
    list.add(tensors[i].numel(), tensors[i].scalar_type(), static_cast<int64_t>(i), {tensors[i].const_data_ptr()});
  const Table<> table = list.view(launcher, tensors[0]);
  Tensor out = torch::stable::new_zeros(tensors[0], {static_cast<int64_t>(tensors.size())}, ScalarType::Long);
  launch_over(launcher, table.chunks, count_nonfinite_kernel, table,
              static_cast<unsigned long long*>(out.mutable_data_ptr()));
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("count_nonfinite", TORCH_BOX(&count_nonfinite_cuda)); }

}  // namespace
}  // namespace taskarith
