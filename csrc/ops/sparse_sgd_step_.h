// sparse_sgd_step_: one step of SGD with momentum of the selected entries of many tensors.
#pragma once

#include "math/sgd.h"
#include "utils/sparse_step.h"

namespace taskarith {

// buffers: none where there is no momentum.
inline StepLists check_sparse_sgd_step(const TensorList& params, const TensorList& grads, const TensorList& buffers,
                                       const TensorList& masters, const TensorList& items, const TensorList& offsets,
                                       const std::vector<int64_t>& streams, int64_t step) {
  StepLists x = check_step("sparse_sgd_step_", params, grads, masters, items, offsets, streams, step);
  if (!buffers.empty()) check_compact("sparse_sgd_step_", "buffers", buffers, x);
  return x;
}

}  // namespace taskarith
