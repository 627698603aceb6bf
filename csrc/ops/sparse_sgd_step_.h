// sparse_sgd_step_: one step of SGD with momentum of the selected entries of many tensors.
#pragma once

#include "math/sgd.h"
#include "utils/sparse_step.h"

namespace taskarith {

struct SgdLists {
  StepLists step;
  std::vector<float*> buffers;  // [count] each; none without momentum
};

inline SgdLists check_sparse_sgd_step(const TensorList& params, const TensorList& grads, const TensorList& buffers,
                                      const TensorList& masters, const TensorList& items, const TensorList& offsets,
                                      const std::vector<int64_t>& streams, const TensorList& steps, int64_t step) {
  constexpr const char* kOp = "sparse_sgd_step_";
  std::vector<Selection> selections = check_selections(kOp, params, items, offsets);
  const std::vector<float*> pointers = compact_pointers(kOp, "buffers", buffers, params, selections);
  return {check_step(kOp, params, grads, masters, selections, streams, steps, step), pointers};
}

}  // namespace taskarith
