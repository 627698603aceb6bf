// fisher_merge: out[i] = sum_t c_t F_ti theta_ti / sum_t c_t F_ti over a list of tensors.
#pragma once

#include "utils/check.h"

namespace taskarith {

// Returns the number of tasks T. finetuned and fishers [T * L tensors, task-major]; shares and factors [T] float64.
inline int64_t check_fisher_merge(const TensorList& finetuned, const TensorList& fishers, const Tensor& shares,
                                  const Tensor& factors) {
  for (const Tensor* weights : {&shares, &factors})
    STD_TORCH_CHECK(weights->dim() == 1 && weights->size(0) == shares.size(0) && weights->size(0) > 0 &&
                        weights->scalar_type() == ScalarType::Double,
                    "fisher_merge: shares and factors must be float64 of shape [T], T at least 1");
  const int64_t tasks = shares.size(0);
  STD_TORCH_CHECK(finetuned.size() % tasks == 0 && fishers.size() == finetuned.size(),
                  "fisher_merge: finetuned and fishers must hold T * L tensors each");
  const TensorList first(finetuned.begin(), finetuned.begin() + finetuned.size() / tasks);
  check_task_lists("fisher_merge", first, finetuned);
  for (size_t i = 0; i < fishers.size(); ++i) {
    STD_TORCH_CHECK(fishers[i].numel() == finetuned[i].numel() && is_storage_type(fishers[i].scalar_type()),
                    "fisher_merge: fishers[", i, "] must be float32, bfloat16 or float16 of ", finetuned[i].numel(),
                    " elements");
    STD_TORCH_CHECK(fishers[i].is_cpu() == finetuned[i].is_cpu() && shares.is_cpu() == finetuned[i].is_cpu() &&
                        factors.is_cpu() == finetuned[i].is_cpu(),
                    "fisher_merge: tensors are on different devices");
  }
  return tasks;
}

}  // namespace taskarith
