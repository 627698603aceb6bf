// sparse_adamw_step_: one AdamW step of the selected entries of many tensors.
#pragma once

#include "math/adamw.h"
#include "utils/sparse_step.h"

namespace taskarith {

struct AdamWLists {
  StepLists step;
  std::vector<float*> exp_avgs, exp_avg_sqs;  // [count] each
};

inline AdamWLists check_sparse_adamw_step(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                                          const TensorList& exp_avg_sqs, const TensorList& masters,
                                          const TensorList& items, const TensorList& offsets,
                                          const std::vector<int64_t>& streams, const TensorList& steps, int64_t step) {
  constexpr const char* kOp = "sparse_adamw_step_";
  STD_TORCH_CHECK(exp_avgs.size() == params.size() && exp_avg_sqs.size() == params.size(), kOp,
                  ": the moments must have the length of params");
  std::vector<Selection> selections = check_selections(kOp, params, items, offsets);
  const std::vector<float*> first = compact_pointers(kOp, "exp_avgs", exp_avgs, params, selections);
  const std::vector<float*> second = compact_pointers(kOp, "exp_avg_sqs", exp_avg_sqs, params, selections);
  return {check_step(kOp, params, grads, masters, selections, streams, steps, step), first, second};
}

}  // namespace taskarith
