// sparse_adamw_step_: one AdamW step of the selected entries of many tensors.
#pragma once

#include "math/adamw.h"
#include "utils/sparse_step.h"

namespace taskarith {

inline StepLists check_sparse_adamw_step(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                                         const TensorList& exp_avg_sqs, const TensorList& masters,
                                         const TensorList& items, const TensorList& offsets,
                                         const std::vector<int64_t>& streams, int64_t step) {
  StepLists x = check_step("sparse_adamw_step_", params, grads, masters, items, offsets, streams, step);
  check_compact("sparse_adamw_step_", "exp_avgs", exp_avgs, x);
  check_compact("sparse_adamw_step_", "exp_avg_sqs", exp_avg_sqs, x);
  return x;
}

}  // namespace taskarith
