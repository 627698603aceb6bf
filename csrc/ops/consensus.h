// consensus: base + scale * sum tau where at least `threshold` tall masks agree, base elsewhere.
#pragma once

#include "ops/tall_mask.h"

namespace taskarith {

inline int64_t check_consensus(const TensorList& base, const TensorList& finetuned, const Tensor& lambdas,
                               int64_t threshold) {
  const int64_t tasks = check_tall_mask("consensus", base, finetuned, lambdas);
  STD_TORCH_CHECK(threshold >= 0 && threshold < (int64_t{1} << 31), "consensus: threshold must be in [0, 2^31)");
  return tasks;
}

}  // namespace taskarith
