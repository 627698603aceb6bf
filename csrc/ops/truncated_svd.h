// truncated_svd: the leading singular triplets of each matrix of a batch.
#pragma once

#include <string>

#include "utils/check.h"

namespace taskarith {

// Returns whether the certified method is asked for.
inline bool check_svd_method(const char* op, const std::string& svd) {
  STD_TORCH_CHECK(svd == "certified" || svd == "exact", op, ": svd must be certified or exact, got ", svd);
  return svd == "certified";
}

inline void check_truncated_svd(const Tensor& matrices, int64_t rank) {
  STD_TORCH_CHECK(matrices.dim() == 3, "truncated_svd: matrices must have shape [L, m, n]");
  STD_TORCH_CHECK(is_storage_type(matrices.scalar_type()), "truncated_svd: float32, bfloat16 or float16");
  STD_TORCH_CHECK(rank >= 1 && rank <= matrices.size(1) && rank <= matrices.size(2),
                  "truncated_svd: rank must be in [1, min(m, n)], got ", rank);
}

}  // namespace taskarith
