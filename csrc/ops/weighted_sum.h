// weighted_sum: out[i] = base[i] + sum_t weights[t, i] (finetuned[t, i] - base[i]) over a list of tensors.
#pragma once

#include "utils/check.h"

namespace taskarith {

// Returns the number of tasks T.
inline int64_t check_weighted_sum(const TensorList& base, const TensorList& finetuned, const Tensor& weights) {
  const int64_t tasks = check_task_lists("weighted_sum", base, finetuned);
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(1) == static_cast<int64_t>(base.size()) &&
                      (base.empty() || weights.size(0) == tasks),
                  "weighted_sum: weights must have shape [T, len(base)]");
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Double, "weighted_sum: weights must be float64");
  for (const Tensor& b : base)
    STD_TORCH_CHECK(b.is_cpu() == weights.is_cpu(), "weighted_sum: weights and base are on different devices");
  return tasks;
}

}  // namespace taskarith
