#include "ops/pack_bits.h"

#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 1 << 17;  // entries a work item, a multiple of 8

void pack(const uint8_t* flags, int64_t n, uint8_t* bits) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) bits[i / 8] = pack_eight(flags + i);
  if (i < n) bits[i / 8] = 0;
  for (int64_t j = 0; i + j < n; ++j) bits[i / 8] |= static_cast<uint8_t>(flags[i + j] << j);
}

TensorList pack_bits_cpu(TensorList masks) {
  check_pack_bits(masks);
  masks = contiguous(masks);
  TensorList out;
  std::vector<int64_t> numels;
  for (const Tensor& m : masks) {
    out.push_back(torch::stable::empty({packed_size(m.numel())}, ScalarType::Byte));
    numels.push_back(m.numel());
  }
  const std::vector<Block> blocks = cut_into_blocks(numels, kBlock);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const Block& block = blocks[j];
      pack(static_cast<const uint8_t*>(masks[block.tensor].const_data_ptr()) + block.begin, block.size,
           out[block.tensor].mutable_data_ptr<uint8_t>() + block.begin / 8);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("pack_bits", TORCH_BOX(&pack_bits_cpu)); }

}  // namespace
}  // namespace taskarith
