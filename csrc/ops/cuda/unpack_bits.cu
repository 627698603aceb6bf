#include "ops/unpack_bits.h"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int W = 16;  // entries a thread writes at a time, from two bytes

__global__ void __launch_bounds__(kThreads) unpack_bits_kernel(const Table<> table) {
  for_each_span(table, [&](const Span<>& span) {
    for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
      const uint8_t* bits = span.at<const uint8_t>(1) + i / 8;
      const uint64_t words[2] = {spread_eight(bits[0]), i + 8 < span.end ? spread_eight(bits[1]) : 0};
      uint8_t flags[W];
      memcpy(flags, words, W);
      store_some<W>(flags, n, whole, span.at<uint8_t>(0) + i);
    });
  });
}

TensorList unpack_bits_cuda(TensorList bits, std::vector<int64_t> numels) {
  check_unpack_bits(bits, numels);
  check_device("unpack_bits", bits, bits[0]);
  const Launcher launcher("unpack_bits", bits[0]);
  bits = contiguous(bits);
  TensorList out;
  TensorTable<> tensors;
  for (size_t i = 0; i < bits.size(); ++i) {
    out.push_back(torch::stable::new_empty(bits[i], {numels[i]}, ScalarType::Bool));
    tensors.add(numels[i], ScalarType::Bool, static_cast<int64_t>(i), {out[i].mutable_data_ptr()},
                {bits[i].const_data_ptr()});
  }
  const Table<> table = tensors.view(launcher, bits[0]);
  launch_over(launcher, table.chunks, unpack_bits_kernel, table);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("unpack_bits", TORCH_BOX(&unpack_bits_cuda)); }

}  // namespace
}  // namespace taskarith
