// weighted_sum_backward: out[t, i] = <grads[i], finetuned[t, i] - base[i]>, the gradient by the weights.
#pragma once

#include "utils/check.h"

namespace taskarith {

// Returns the number of tasks T.
inline int64_t check_weighted_sum_backward(const TensorList& grads, const TensorList& base,
                                           const TensorList& finetuned) {
  check_task_lists("weighted_sum_backward", base, grads);
  STD_TORCH_CHECK(grads.size() == base.size(), "weighted_sum_backward: grads must hold ", base.size(),
                  " tensors like base, got ", grads.size());
  return check_task_lists("weighted_sum_backward", base, finetuned);
}

}  // namespace taskarith
