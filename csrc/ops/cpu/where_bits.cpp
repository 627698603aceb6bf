#include "ops/where_bits.h"

#include "utils/task_strips.h"

namespace taskarith {
namespace {

// n <= 8 elements of integers as wide as the storage type.
template <class T>
TASKARITH_SIMD void choose(const uint8_t* __restrict bits, const T* __restrict on, const T* __restrict off,
                           T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i += 8) {
    const T byte = bits[i / 8];
    const int64_t m = std::min<int64_t>(8, n - i);
#pragma omp simd
    for (int64_t j = 0; j < m; ++j) out[i + j] = (byte >> j) & 1 ? on[i + j] : off[i + j];
  }
}

template <class T>
void choose_block(const Block& block, const Tensor& bits, const Tensor& on, const Tensor& off, Tensor& out) {
  choose(bits.const_data_ptr<uint8_t>() + block.begin / 8, static_cast<const T*>(on.const_data_ptr()) + block.begin,
         static_cast<const T*>(off.const_data_ptr()) + block.begin,
         static_cast<T*>(out.mutable_data_ptr()) + block.begin, block.size);
}

TensorList where_bits_cpu(TensorList bits, TensorList on, TensorList off) {
  check_where_bits(bits, on, off);
  bits = contiguous(bits);
  const TaskLists x(off, on, 1);
  TensorList out = empty_like_list(x.base);
  const std::vector<Block> blocks = cut_into_blocks(x.numels(), kTaskBlock);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const int64_t i = blocks[j].tensor;
      const auto run = x.type(i) == ScalarType::Float ? &choose_block<uint32_t> : &choose_block<uint16_t>;
      run(blocks[j], bits[i], x.finetuned[i], x.base[i], out[i]);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("where_bits", TORCH_BOX(&where_bits_cpu)); }

}  // namespace
}  // namespace taskarith
