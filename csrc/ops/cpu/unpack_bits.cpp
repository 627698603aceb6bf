#include "ops/unpack_bits.h"

#include "utils/parallel.h"
#include "utils/simd.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 1 << 17;  // entries a work item, a multiple of 8

TASKARITH_SIMD void unpack(const uint8_t* __restrict bits, int64_t n, uint8_t* __restrict flags) {
  const int64_t whole = n / 8;
  for (int64_t i = 0; i < whole; ++i) {
    const uint64_t bytes = spread_eight(bits[i]);
    std::memcpy(flags + 8 * i, &bytes, 8);
  }
  for (int64_t i = 8 * whole; i < n; ++i) flags[i] = (bits[i / 8] >> (i % 8)) & 1;
}

TensorList unpack_bits_cpu(TensorList bits, std::vector<int64_t> numels) {
  check_unpack_bits(bits, numels);
  bits = contiguous(bits);
  TensorList out;
  for (const int64_t numel : numels) out.push_back(torch::stable::empty({numel}, ScalarType::Bool));
  const std::vector<Block> blocks = cut_into_blocks(numels, kBlock);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const Block& block = blocks[j];
      unpack(bits[block.tensor].const_data_ptr<uint8_t>() + block.begin / 8, block.size,
             static_cast<uint8_t*>(out[block.tensor].mutable_data_ptr()) + block.begin);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("unpack_bits", TORCH_BOX(&unpack_bits_cpu)); }

}  // namespace
}  // namespace taskarith
