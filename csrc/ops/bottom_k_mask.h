// bottom_k_mask: packed bits of the k lowest (or largest) scores of many tensors, some entries excluded.
#pragma once

#include "math/bits.h"
#include "ops/pack_bits.h"
#include "utils/host_memory.h"

namespace taskarith {

inline int64_t count_set(const Tensor& bits, int64_t numel) {
  const uint8_t* bytes = bits.const_data_ptr<uint8_t>();
  int64_t count = 0;
  for (int64_t i = 0; i < numel / 8; ++i) count += __builtin_popcount(bytes[i]);
  if (numel % 8) count += __builtin_popcount(bytes[numel / 8] & ((1u << (numel % 8)) - 1));
  return count;
}

// `excluded` is empty, or holds the packed bits of every tensor. k is at most the number of entries left, which is not
// counted here in a GPU's memory.
inline void check_bottom_k_mask(const TensorList& scores, const TensorList& excluded, int64_t k) {
  STD_TORCH_CHECK(excluded.empty() || excluded.size() == scores.size(), "bottom_k_mask: excluded must hold ",
                  scores.size(), " packed masks or none, got ", excluded.size());
  int64_t candidates = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    STD_TORCH_CHECK(scores[i].scalar_type() == ScalarType::Float, "bottom_k_mask: scores must be float32");
    candidates += scores[i].numel();
    if (excluded.empty()) continue;
    check_packed("bottom_k_mask", excluded[i], scores[i].numel());
    STD_TORCH_CHECK(excluded[i].is_contiguous() && excluded[i].is_cpu() == scores[i].is_cpu(),
                    "bottom_k_mask: excluded must be contiguous, on the scores' device");
    if (readable(excluded[i])) candidates -= count_set(excluded[i], scores[i].numel());
  }
  STD_TORCH_CHECK(k >= 0 && k <= candidates, "bottom_k_mask: k must be in [0, ", candidates, "], got ", k);
}

}  // namespace taskarith
