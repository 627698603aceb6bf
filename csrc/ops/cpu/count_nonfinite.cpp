#include <atomic>

#include "utils/check.h"
#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 65536;  // elements a work item

template <class T>
inline __attribute__((always_inline)) int64_t count_all_ones(const T* __restrict bits, T exponent, int64_t n) {
  T count = 0;  // a block holds fewer elements than T counts to
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < n; ++i) count += (bits[i] & exponent) == exponent ? 1 : 0;
  return count;
}

TASKARITH_SIMD int64_t count_words(const uint32_t* bits, int64_t n) {
  return count_all_ones<uint32_t>(bits, 0x7F800000u, n);
}

TASKARITH_SIMD int64_t count_halves(const uint16_t* bits, uint16_t exponent, int64_t n) {
  return count_all_ones<uint16_t>(bits, exponent, n);
}

// NaN and infinity are the values whose exponent is all ones.
int64_t count_block(const void* data, ScalarType type, int64_t begin, int64_t size) {
  if (type == ScalarType::Float) return count_words(static_cast<const uint32_t*>(data) + begin, size);
  constexpr int64_t kPart = 32768;
  const uint16_t exponent = type == ScalarType::BFloat16 ? 0x7F80 : 0x7C00;
  int64_t count = 0;
  for (int64_t s = 0; s < size; s += kPart)
    count += count_halves(static_cast<const uint16_t*>(data) + begin + s, exponent, std::min(kPart, size - s));
  return count;
}

Tensor count_nonfinite_cpu(TensorList tensors) {
  tensors = contiguous(tensors);
  std::vector<int64_t> numels;
  for (const Tensor& x : tensors) {
    STD_TORCH_CHECK(is_storage_type(x.scalar_type()), "count_nonfinite: float32, bfloat16 or float16");
    numels.push_back(x.numel());
  }
  const std::vector<Block> blocks = cut_into_blocks(numels, kBlock);
  std::vector<std::atomic<int64_t>> counts(tensors.size());
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const Tensor& x = tensors[blocks[j].tensor];
      counts[blocks[j].tensor] += count_block(x.const_data_ptr(), x.scalar_type(), blocks[j].begin, blocks[j].size);
    }
  });
  Tensor out = torch::stable::empty({static_cast<int64_t>(tensors.size())}, ScalarType::Long);
  std::copy(counts.begin(), counts.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("count_nonfinite", TORCH_BOX(&count_nonfinite_cpu)); }

}  // namespace
}  // namespace taskarith
