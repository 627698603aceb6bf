#include "ops/pack_bits.h"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int W = 16;  // entries a thread takes at a time: two bytes of the result

__global__ void __launch_bounds__(kThreads) pack_bits_kernel(const Table<> table) {
  for_each_span(table, [&](const Span<>& span) {
    for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
      uint8_t flags[W];
      load_some<W>(span.at<const uint8_t>(0) + i, n, whole, flags);
      uint64_t words[2];
      memcpy(words, flags, W);
      uint8_t* out = span.at<uint8_t>(1) + i / 8;
      out[0] = pack_eight(words[0]);
      if (i + 8 < span.end) out[1] = pack_eight(words[1]);
    });
  });
}

TensorList pack_bits_cuda(TensorList masks) {
  check_pack_bits(masks);
  check_device("pack_bits", masks, masks[0]);
  const Launcher launcher("pack_bits", masks[0]);
  masks = contiguous(masks);
  TensorList out;
  TensorTable<> tensors;
  for (const Tensor& mask : masks) {
    out.push_back(torch::stable::new_empty(mask, {packed_size(mask.numel())}, ScalarType::Byte));
    tensors.add(mask.numel(), ScalarType::Bool, static_cast<int64_t>(out.size()) - 1, {mask.const_data_ptr()},
                {out.back().mutable_data_ptr()});
  }
  const Table<> table = tensors.view(launcher, masks[0]);
  launch_over(launcher, table.chunks, pack_bits_kernel, table);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("pack_bits", TORCH_BOX(&pack_bits_cuda)); }

}  // namespace
}  // namespace taskarith
