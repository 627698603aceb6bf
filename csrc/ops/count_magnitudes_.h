// count_magnitudes_: add |finetuned - base| to histograms, one a task, of the magnitudes in a bracket.
#pragma once

#include "math/magnitude.h"
#include "utils/check.h"

namespace taskarith {

// Returns the number of bins of a row: the last column of counts [T, bins + 1] counts what is above the bracket.
inline int64_t check_count_magnitudes(const Tensor& counts, const Tensor& base, const TensorList& finetuned,
                                      const std::vector<int64_t>& low, const std::vector<int64_t>& high,
                                      const std::vector<int64_t>& shift) {
  const int64_t tasks = check_task_lists("count_magnitudes_", {base}, finetuned);
  STD_TORCH_CHECK(counts.dim() == 2 && counts.size(0) == tasks && counts.size(1) > 1 &&
                      (counts.scalar_type() == ScalarType::Long || counts.scalar_type() == ScalarType::Int) &&
                      counts.is_contiguous(),
                  "count_magnitudes_: counts must be contiguous int64 or int32 of shape [T=", tasks, ", bins + 1]");
  const int64_t bins = counts.size(1) - 1, limit = kNan;
  for (const auto* list : {&low, &high, &shift})
    STD_TORCH_CHECK(static_cast<int64_t>(list->size()) == tasks,
                    "count_magnitudes_: low, high and shift need T=", tasks, " entries");
  for (int64_t t = 0; t < tasks; ++t)
    STD_TORCH_CHECK(0 <= low[t] && low[t] <= high[t] && high[t] <= limit && 0 <= shift[t] && shift[t] < 32 &&
                        (high[t] - low[t]) >> shift[t] < bins,
                    "count_magnitudes_: bracket ", t, " must lie in [0, ", limit, "] and in ", bins, " bins");
  return bins;
}

}  // namespace taskarith
