// ties_merge: trim by threshold, elect a sign, combine the deltas that agree, add to the base.
#pragma once

#include "math/ties.h"
#include "ops/kth_magnitude.h"

namespace taskarith {

inline Elect parse_elect(const std::string& elect) {
  STD_TORCH_CHECK(elect == "mass" || elect == "count" || elect == "normfrac" || elect == "normmass",
                  "ties_merge: unknown elect ", elect);
  if (elect == "mass") return Elect::kMass;
  return elect == "count" ? Elect::kCount : elect == "normfrac" ? Elect::kNormFrac : Elect::kNormMass;
}

inline Combine parse_combine(const std::string& combine) {
  STD_TORCH_CHECK(combine == "mean" || combine == "sum" || combine == "max", "ties_merge: unknown combine ", combine);
  return combine == "mean" ? Combine::kMean : combine == "sum" ? Combine::kSum : Combine::kMax;
}

// Returns the number of tasks T. thresholds and cutoffs [S, T], as kth_magnitude gives them.
inline int64_t check_ties_merge(const TensorList& base, const TensorList& finetuned, const Tensor& thresholds,
                                const Tensor& cutoffs, const std::string& zero_sign, const Segments& segments) {
  const int64_t tasks = check_task_lists("ties_merge", base, finetuned);
  for (const Tensor* table : {&thresholds, &cutoffs})
    STD_TORCH_CHECK(
        table->dim() == 2 && table->size(0) == segments.count() && (base.empty() || table->size(1) == tasks),
        "ties_merge: thresholds and cutoffs must have shape [S=", segments.count(), ", T=", tasks, "]");
  STD_TORCH_CHECK(thresholds.scalar_type() == ScalarType::Float, "ties_merge: thresholds must be float32");
  STD_TORCH_CHECK(cutoffs.scalar_type() == ScalarType::Long, "ties_merge: cutoffs must be int64");
  for (const Tensor& b : base)
    STD_TORCH_CHECK(b.is_cpu() == thresholds.is_cpu() && b.is_cpu() == cutoffs.is_cpu(),
                    "ties_merge: thresholds, cutoffs and base are on different devices");
  STD_TORCH_CHECK(zero_sign == "global_majority" || zero_sign == "plus" || zero_sign == "zero",
                  "ties_merge: unknown zero_sign ", zero_sign);
  return tasks;
}

// A float64 number a task: what the operators on a part of a model carry from part to part.
inline void check_task_sums(const char* op, const Tensor& sums, int64_t tasks, const Tensor& thresholds) {
  STD_TORCH_CHECK(sums.dim() == 1 && sums.size(0) == tasks && sums.scalar_type() == ScalarType::Double &&
                      sums.is_cpu() == thresholds.is_cpu() && sums.is_contiguous(),
                  op, ": expected contiguous float64 of shape [T=", tasks, "] on the device of thresholds");
}

}  // namespace taskarith
