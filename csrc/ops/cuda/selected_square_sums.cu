#include "ops/selected_square_sums.h"
#include "utils/block_reduce.cuh"
#include "utils/selected.cuh"

namespace taskarith {
namespace {

struct SumInfo {
  int64_t blocks;
  Form form;
  int unused;
};

enum SumPointer : int64_t { kData, kItems, kOffsets };

// One sum a chunk.
__global__ void __launch_bounds__(kThreads, 4)
    selected_square_sums_kernel(const Table<SumInfo> table, double* __restrict__ partial) {
  for_each_span(table, [&](Span<SumInfo> span) {
    const SumInfo& info = span.tensor.info;
    const SelectedRange range = selected_range(span.at<const uint16_t>(kItems), span.at<const int64_t>(kOffsets),
                                               info.form, info.blocks, span.begin, span.end);
    span.end = range.end;
    double sum[1] = {0};
    with_storage(span.tensor.storage, [&](auto zero) {
      using T = decltype(zero);
      for_each_vector<kSelected>(span, [&](int64_t j, int n, auto whole) {
        int64_t at[kSelected];
        T values[kSelected];
        find_entries(range, j, n, whole, at);
        load_entries(span.at<const T>(kData), info.form != Form::kEvery, j, at, n, whole, values);
#pragma unroll
        for (int k = 0; k < kSelected; ++k) {
          const double x = to_float(values[k]);
          sum[0] += x * x;
        }
      });
    });
    block_sum<kThreads>(sum);
    if (threadIdx.x == 0) partial[span.chunk] = sum[0];
  });
}

// The sums of each tensor's chunks in a fixed order. A block a tensor.
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(const Table<SumInfo> table, const double* __restrict__ partial, double* __restrict__ out) {
  for (int64_t i = blockIdx.x; i < table.tensors; i += gridDim.x) {
    const int64_t end = i + 1 < table.tensors ? table.entries[i + 1].first_chunk : table.chunks;
    double sum[1] = {0};
    for (int64_t chunk = table.entries[i].first_chunk + threadIdx.x; chunk < end; chunk += kThreads)
      sum[0] += partial[chunk];
    block_sum<kThreads>(sum);
    if (threadIdx.x == 0) out[i] = sum[0];
  }
}

Tensor selected_square_sums_cuda(TensorList tensors, TensorList items, TensorList offsets,
                                 std::vector<int64_t> numels) {
  constexpr const char* kOp = "selected_square_sums";
  const std::vector<Selection> selections = check_selected_square_sums(tensors, items, offsets, numels);
  for (const TensorList* list : {&tensors, &items, &offsets}) check_device(kOp, *list, tensors[0]);
  const Launcher launcher(kOp, tensors[0]);
  tensors = contiguous(tensors);
  TensorTable<SumInfo> list;
  for (size_t i = 0; i < tensors.size(); ++i)
    list.add(selections[i].count, tensors[i].scalar_type(), static_cast<int64_t>(i),
             {tensors[i].const_data_ptr(), selections[i].items}, {selections[i].offsets},
             {selections[i].blocks(), form_of(selections[i]), 0});
  const Table<SumInfo> table = list.view(launcher, tensors[0]);
  const auto doubles = [&](int64_t size) { return torch::stable::new_empty(tensors[0], {size}, ScalarType::Double); };
  Tensor partial = doubles(table.chunks), out = doubles(table.tensors);
  double* parts = static_cast<double*>(partial.mutable_data_ptr());
  launch_over(launcher, table.chunks, selected_square_sums_kernel, table, parts);
  launch_over(launcher, table.tensors, add_chunks_kernel, table, parts, static_cast<double*>(out.mutable_data_ptr()));
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("selected_square_sums", TORCH_BOX(&selected_square_sums_cuda)); }

}  // namespace
}  // namespace taskarith
