#include "ops/where_bits.h"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

// Values are moved as integers of their width: a NaN keeps its bits. Pointers: out, off, on, bits.
template <class Word>
__device__ __forceinline__ void choose(const Span<>& span) {
  constexpr int W = 16 / sizeof(Word);
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    Word off[W], on[W];
    load_some<W>(span.at<const Word>(1) + i, n, whole, off);
    load_some<W>(span.at<const Word>(2) + i, n, whole, on);
    const unsigned bits = span.at<const uint8_t>(3)[i / 8] >> (i % 8);
#pragma unroll
    for (int j = 0; j < W; ++j) off[j] = (bits >> j) & 1 ? on[j] : off[j];
    store_some<W>(off, n, whole, span.at<Word>(0) + i);
  });
}

__global__ void __launch_bounds__(kThreads) where_bits_kernel(const Table<> table) {
  for_each_span(table, [&](const Span<>& span) {
    if (span.tensor.storage == Storage::kFloat)
      choose<uint32_t>(span);
    else
      choose<uint16_t>(span);
  });
}

TensorList where_bits_cuda(TensorList bits, TensorList on, TensorList off) {
  check_where_bits(bits, on, off);
  for (const TensorList* list : {&bits, &on, &off}) check_device("where_bits", *list, off[0]);
  const Launcher launcher("where_bits", off[0]);
  bits = contiguous(bits);
  on = contiguous(on);
  off = contiguous(off);
  TensorList out = empty_like_each(off);
  TensorTable<> tensors;
  for (size_t i = 0; i < off.size(); ++i)
    tensors.add(off[i].numel(), off[i].scalar_type(), static_cast<int64_t>(i),
                {out[i].mutable_data_ptr(), off[i].const_data_ptr(), on[i].const_data_ptr()},
                {bits[i].const_data_ptr()});
  const Table<> table = tensors.view(launcher, off[0]);
  launch_over(launcher, table.chunks, where_bits_kernel, table);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("where_bits", TORCH_BOX(&where_bits_cuda)); }

}  // namespace
}  // namespace taskarith
