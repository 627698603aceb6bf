// What the optimizers' steps over selected entries have in common: lists and checks.
#pragma once

#include <optional>

#include "utils/host_device.h"
#include "utils/selection.h"

namespace taskarith {

// One parameter of a step. A stable tensor answers questions slowly: the answers are kept.
struct StepTensor {
  void* param;
  ScalarType param_type;
  const void* grad;
  ScalarType grad_type;
  bool compact_grad;
  float* master;  // null: the parameter itself is updated
  bool at_random;
  uint64_t stream;    // key of the random rounding
  const float* done;  // number of the steps before this one; null: all tensors take the step's number
  Selection selection;
};

struct StepLists {
  TensorList grads;  // owns contiguous copies
  std::vector<StepTensor> tensors;
  int64_t step;
};

// The scalars that may be on the GPU, where they stay; null where they are not given.
struct StepScalars {
  const float *clip, *grad_scale, *found_inf;
  bool maximize;

  TASKARITH_HOST_DEVICE bool skips() const { return found_inf && *found_inf != 0; }

  // What every gradient is multiplied with.
  TASKARITH_HOST_DEVICE float factor() const {
    const float limit = clip ? *clip : 1.0f, scale = grad_scale ? *grad_scale : 1.0f;
    return (maximize ? -limit : limit) / scale;
  }
};

TASKARITH_HOST_DEVICE int64_t number_of(int64_t step, const float* done) {
  return done ? static_cast<int64_t>(*done) + 1 : step;
}

inline const float* scalar_pointer(const char* op, const Tensor& x, bool on_cpu) {
  STD_TORCH_CHECK(x.numel() == 1 && x.scalar_type() == ScalarType::Float && x.is_cpu() == on_cpu, op,
                  ": clip, grad_scale, found_inf and steps must be float32 of one entry, on the parameters' device");
  return x.const_data_ptr<float>();
}

inline StepScalars check_scalars(const char* op, const TensorList& params, const std::optional<Tensor>& clip,
                                 const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                                 bool maximize) {
  const auto pointer = [&](const std::optional<Tensor>& x) {
    return x ? scalar_pointer(op, *x, params.empty() || params[0].is_cpu()) : nullptr;
  };
  return {pointer(clip), pointer(grad_scale), pointer(found_inf), maximize};
}

// Pointers to float32 tensors [count]; empty where the list is.
inline std::vector<float*> compact_pointers(const char* op, const char* name, const TensorList& list,
                                            const TensorList& params, std::vector<Selection>& selections) {
  std::vector<float*> out;
  STD_TORCH_CHECK(list.empty() || list.size() == params.size(), op, ": ", name, " must have the length of params");
  for (size_t i = 0; i < list.size(); ++i) {
    STD_TORCH_CHECK(list[i].scalar_type() == ScalarType::Float && list[i].is_contiguous() &&
                        selections[i].is_compact(list[i].numel()) && list[i].is_cpu() == params[i].is_cpu(),
                    op, ": ", name, "[", i, "] must be contiguous float32 [count=", selections[i].count, "]");
    out.push_back(list[i].mutable_data_ptr<float>());
  }
  return out;
}

inline std::vector<Selection> check_selections(const char* op, const TensorList& params, const TensorList& items,
                                               const TensorList& offsets) {
  std::vector<Selection> out;
  STD_TORCH_CHECK(items.size() == params.size() && offsets.size() == params.size(), op, ": the lists differ in length");
  for (size_t i = 0; i < params.size(); ++i) {
    STD_TORCH_CHECK(items[i].is_cpu() == params[i].is_cpu(), op, ": tensors on different devices");
    out.push_back(check_selection(op, items[i], offsets[i], params[i].numel()));
  }
  return out;
}

// The compact states come first: they settle how much is selected.
inline StepLists check_step(const char* op, const TensorList& params, const TensorList& grads,
                            const TensorList& masters, std::vector<Selection>& selections,
                            const std::vector<int64_t>& streams, const TensorList& steps, int64_t step) {
  StepLists x{contiguous(grads), {}, step};
  const std::vector<float*> master = compact_pointers(op, "masters", masters, params, selections);
  STD_TORCH_CHECK(grads.size() == params.size() && step >= 1, op, ": the lists differ in length, or step is below 1");
  STD_TORCH_CHECK(streams.empty() || (streams.size() == params.size() && masters.empty()), op,
                  ": streams need one key a tensor, and no masters");
  STD_TORCH_CHECK(steps.empty() || steps.size() == params.size(), op, ": steps must have the length of params");
  for (size_t i = 0; i < params.size(); ++i) {
    const ScalarType type = params[i].scalar_type(), grad_type = grads[i].scalar_type();
    Selection& selection = selections[i];
    STD_TORCH_CHECK(is_storage_type(type) && is_storage_type(grad_type) && params[i].is_contiguous() &&
                        params[i].is_cpu() == grads[i].is_cpu(),
                    op, ": params[", i, "] must be contiguous float32, bfloat16 or float16, like its gradient");
    const bool dense = grads[i].numel() == selection.numel;
    STD_TORCH_CHECK(dense || selection.is_compact(grads[i].numel()), op, ": grads[", i, "] must have ", selection.numel,
                    " or ", selection.count, " entries");
    x.tensors.push_back({params[i].mutable_data_ptr(), type, x.grads[i].const_data_ptr(), grad_type, !dense,
                         master.empty() ? nullptr : master[i], !streams.empty() && type != ScalarType::Float,
                         streams.empty() ? 0 : static_cast<uint64_t>(streams[i]),
                         steps.empty() ? nullptr : scalar_pointer(op, steps[i], params[i].is_cpu()), selection});
  }
  return x;
}

}  // namespace taskarith
