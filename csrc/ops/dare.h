// dare: out[i] = base[i] + sum_t weights[t, i] kept(t, i) (finetuned[t, i] - base[i]), kept at random.
#pragma once

#include "utils/check.h"

namespace taskarith {

// Returns the number of tasks T. streams [T, L] int64: the generator's keys. begins [L] int64: where the tensors, if
// they are pieces, begin; multiples of 64.
inline int64_t check_dare(const TensorList& base, const TensorList& finetuned, const Tensor& weights,
                          const Tensor& streams, int64_t threshold, const Tensor& begins) {
  const int64_t tasks = check_task_lists("dare", base, finetuned);
  for (const Tensor* table : {&weights, &streams})
    STD_TORCH_CHECK(table->dim() == 2 && table->size(1) == static_cast<int64_t>(base.size()) &&
                        (base.empty() || table->size(0) == tasks),
                    "dare: weights and streams must have shape [T, len(base)]");
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Double, "dare: weights must be float64");
  STD_TORCH_CHECK(streams.scalar_type() == ScalarType::Long, "dare: streams must be int64");
  STD_TORCH_CHECK(begins.scalar_type() == ScalarType::Long && begins.dim() == 1 &&
                      begins.size(0) == static_cast<int64_t>(base.size()),
                  "dare: begins must be int64 of shape [len(base)]");
  STD_TORCH_CHECK(threshold >= 1 && threshold <= (int64_t{1} << 32), "dare: threshold must be in [1, 2^32]");
  for (const Tensor& b : base)
    for (const Tensor* table : {&weights, &streams, &begins})
      STD_TORCH_CHECK(b.is_cpu() == table->is_cpu(),
                      "dare: weights, streams, begins and base are on different devices");
  return tasks;
}

}  // namespace taskarith
