// breadcrumbs: out[i] = base[i] + sum_t weights[t, i] (the middle of every row of finetuned[t, i] - base[i]).
#pragma once

#include "utils/check.h"

namespace taskarith {

inline int64_t row_size(const Tensor& x) { return x.dim() > 0 ? x.size(x.dim() - 1) : 1; }

// Returns the number of tasks T. removed and kept count entries of a row, one number a tensor.
inline int64_t check_breadcrumbs(const TensorList& base, const TensorList& finetuned, const Tensor& weights,
                                 const std::vector<int64_t>& removed, const std::vector<int64_t>& kept) {
  const int64_t tasks = check_task_lists("breadcrumbs", base, finetuned);
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(1) == static_cast<int64_t>(base.size()) &&
                      (base.empty() || weights.size(0) == tasks),
                  "breadcrumbs: weights must have shape [T, len(base)]");
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Double, "breadcrumbs: weights must be float64");
  STD_TORCH_CHECK(removed.size() == base.size() && kept.size() == base.size(),
                  "breadcrumbs: removed and kept must have one number a tensor");
  for (size_t i = 0; i < base.size(); ++i) {
    STD_TORCH_CHECK(base[i].is_cpu() == weights.is_cpu(), "breadcrumbs: weights and base are on different devices");
    STD_TORCH_CHECK(removed[i] >= 0 && kept[i] >= 0 && removed[i] + kept[i] <= row_size(base[i]),
                    "breadcrumbs: removed[", i, "] + kept[", i, "] must be in [0, ", row_size(base[i]), "], got ",
                    removed[i], " + ", kept[i]);
  }
  return tasks;
}

}  // namespace taskarith
