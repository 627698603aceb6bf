// Memory-safety checks shared by the devices' kernels. What an argument means is checked in Python, once.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

#include "utils/convert.h"

namespace taskarith {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

// Contiguous copies where a tensor is not; the list owns what the kernel reads.
inline TensorList contiguous(const TensorList& tensors) {
  TensorList out;
  out.reserve(tensors.size());
  for (const Tensor& t : tensors) out.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
  return out;
}

// base [L tensors] and finetuned [T * L tensors, task-major] must agree in size and type, tensor by tensor.
inline int64_t check_task_lists(const char* op, const TensorList& base, const TensorList& finetuned) {
  const int64_t num_tensors = static_cast<int64_t>(base.size());
  STD_TORCH_CHECK(num_tensors > 0 ? finetuned.size() % num_tensors == 0 : finetuned.empty(), op,
                  ": finetuned must hold T * len(base) tensors, got ", finetuned.size(), " for ", num_tensors);
  for (int64_t i = 0; i < static_cast<int64_t>(finetuned.size()); ++i) {
    const Tensor& b = base[i % num_tensors];
    STD_TORCH_CHECK(finetuned[i].numel() == b.numel(), op, ": finetuned[", i, "] has ", finetuned[i].numel(),
                    " elements, base has ", b.numel());
    STD_TORCH_CHECK(finetuned[i].scalar_type() == b.scalar_type(), op, ": finetuned[", i, "] and base differ in dtype");
    STD_TORCH_CHECK(finetuned[i].is_cpu() == b.is_cpu(), op, ": finetuned[", i, "] and base are on different devices");
  }
  for (const Tensor& b : base) STD_TORCH_CHECK(is_storage_type(b.scalar_type()), op, ": float32, bfloat16 or float16");
  return num_tensors > 0 ? static_cast<int64_t>(finetuned.size()) / num_tensors : 0;
}

}  // namespace taskarith
