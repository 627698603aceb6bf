// masked_wgrad_: values[j] += sum_n grad_y[n, o_j] x[n, k_j] for the selected entries (o_j, k_j) of a weight [o, k].
#pragma once

#include <bit>

#include "math/bits.h"
#include "utils/check.h"

namespace taskarith {

// How many bits of a packed mask are set in [begin, end).
inline int64_t count_bits(const uint8_t* mask, int64_t begin, int64_t end) {
  int64_t found = 0;
  for (int64_t i = begin; i < end;) {
    const int64_t n = std::min<int64_t>(57, end - i);
    found += std::popcount(bits_at(mask, packed_size(end), i, n));
    i += n;
  }
  return found;
}

// The kernel writes where row_starts says, so on the CPU it is compared with the mask, row by row.
inline void check_masked_wgrad(const Tensor& values, const Tensor& x, const Tensor& grad_y, const Tensor& mask,
                               const Tensor& row_starts) {
  STD_TORCH_CHECK(values.dim() == 1 && x.dim() == 2 && grad_y.dim() == 2 && x.size(0) == grad_y.size(0),
                  "masked_wgrad_: values [count], x [N, k], grad_y [N, o]");
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.is_contiguous(),
                  "masked_wgrad_: values must be contiguous float32");
  STD_TORCH_CHECK(is_storage_type(x.scalar_type()) && is_storage_type(grad_y.scalar_type()),
                  "masked_wgrad_: float32, bfloat16 or float16");
  const int64_t o = grad_y.size(1), k = x.size(1);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte && mask.is_contiguous() && mask.numel() == packed_size(o * k),
                  "masked_wgrad_: mask must be contiguous uint8 [ceil(o * k / 8)]");
  STD_TORCH_CHECK(
      row_starts.scalar_type() == ScalarType::Long && row_starts.is_contiguous() && row_starts.numel() == o + 1,
      "masked_wgrad_: row_starts must be contiguous int64 [o + 1]");
  for (const Tensor* t : {&x, &grad_y, &mask, &row_starts})
    STD_TORCH_CHECK(t->is_cpu() == values.is_cpu(), "masked_wgrad_: tensors on different devices");
  if (!values.is_cpu()) return;
  const int64_t* starts = row_starts.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(starts[0] == 0 && starts[o] == values.numel(), "masked_wgrad_: row_starts must end with ",
                  values.numel(), ", got ", starts[o]);
  for (int64_t i = 0; i < o; ++i)
    STD_TORCH_CHECK(count_bits(mask.const_data_ptr<uint8_t>(), i * k, (i + 1) * k) == starts[i + 1] - starts[i],
                    "masked_wgrad_: row_starts does not belong to mask, row ", i);
}

}  // namespace taskarith
