// tall_mask: bits |tau_t| > lambdas[t] |sum tau - tau_t|, packed, for every task and tensor.
#pragma once

#include "utils/check.h"

namespace taskarith {

// Returns the number of tasks T. Shared with consensus, which votes over the same masks.
inline int64_t check_tall_mask(const char* op, const TensorList& base, const TensorList& finetuned,
                               const Tensor& lambdas) {
  const int64_t tasks = check_task_lists(op, base, finetuned);
  STD_TORCH_CHECK(lambdas.dim() == 1 && (base.empty() || lambdas.size(0) == tasks), op,
                  ": lambdas must have shape [T=", tasks, "]");
  STD_TORCH_CHECK(lambdas.scalar_type() == ScalarType::Double, op, ": lambdas must be float64");
  for (const Tensor& b : base)
    STD_TORCH_CHECK(b.is_cpu() == lambdas.is_cpu(), op, ": lambdas and base are on different devices");
  return tasks;
}

}  // namespace taskarith
