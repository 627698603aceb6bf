// lowrank_sum: out[i] = sum_t SVD_r(finetuned[t, i] - base[i]) over a list of matrices.
#pragma once

#include "ops/truncated_svd.h"

namespace taskarith {

// Returns the number of tasks T.
inline int64_t check_lowrank_sum(const TensorList& base, const TensorList& finetuned,
                                 const std::vector<int64_t>& rank) {
  const int64_t tasks = check_task_lists("lowrank_sum", base, finetuned);
  STD_TORCH_CHECK(rank.size() == base.size(), "lowrank_sum: rank must have len(base) entries, got ", rank.size());
  for (size_t i = 0; i < base.size(); ++i) {
    STD_TORCH_CHECK(base[i].dim() == 2, "lowrank_sum: base[", i, "] must be a matrix");
    STD_TORCH_CHECK(rank[i] >= 1 && rank[i] <= base[i].size(0) && rank[i] <= base[i].size(1), "lowrank_sum: rank[", i,
                    "] must be in [1, min(m, n)], got ", rank[i]);
  }
  return tasks;
}

}  // namespace taskarith
