// What the optimizers' steps over selected entries have in common: lists, checks, and the walk.
#pragma once

#include <optional>

#include "math/stochastic_rounding.h"
#include "utils/selection.h"
#include "utils/work_queue.h"

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
  uint64_t stream;  // key of the random rounding
  Selection selection;
};

struct StepLists {
  TensorList grads;  // owns contiguous copies
  std::vector<StepTensor> tensors;
  uint32_t step;
};

// Pointers to float32 tensors [count]; empty where the list is.
inline std::vector<float*> compact_pointers(const char* op, const char* name, const TensorList& list,
                                            const TensorList& params, const std::vector<Selection>& selections) {
  std::vector<float*> out;
  STD_TORCH_CHECK(list.empty() || list.size() == params.size(), op, ": ", name, " must have the length of params");
  for (size_t i = 0; i < list.size(); ++i) {
    STD_TORCH_CHECK(list[i].scalar_type() == ScalarType::Float && list[i].is_contiguous() &&
                        list[i].numel() == selections[i].count && list[i].is_cpu() == params[i].is_cpu(),
                    op, ": ", name, "[", i, "] must be contiguous float32 [count=", selections[i].count, "]");
    out.push_back(list[i].mutable_data_ptr<float>());
  }
  return out;
}

inline std::vector<Selection> check_selections(const char* op, const TensorList& params, const TensorList& items,
                                               const TensorList& offsets) {
  std::vector<Selection> out;
  STD_TORCH_CHECK(items.size() == params.size() && offsets.size() == params.size(), op, ": the lists differ in length");
  for (size_t i = 0; i < params.size(); ++i)
    out.push_back(check_selection(op, items[i], offsets[i], params[i].numel()));
  return out;
}

inline StepLists check_step(const char* op, const TensorList& params, const TensorList& grads,
                            const TensorList& masters, const std::vector<Selection>& selections,
                            const std::vector<int64_t>& streams, int64_t step) {
  StepLists x{contiguous(grads), {}, static_cast<uint32_t>(step)};
  const std::vector<float*> master = compact_pointers(op, "masters", masters, params, selections);
  STD_TORCH_CHECK(grads.size() == params.size() && step >= 1, op, ": the lists differ in length, or step is below 1");
  STD_TORCH_CHECK(streams.empty() || (streams.size() == params.size() && masters.empty()), op,
                  ": streams need one key a tensor, and no masters");
  for (size_t i = 0; i < params.size(); ++i) {
    const ScalarType type = params[i].scalar_type(), grad_type = grads[i].scalar_type();
    const Selection& selection = selections[i];
    STD_TORCH_CHECK(is_storage_type(type) && is_storage_type(grad_type) && params[i].is_contiguous() &&
                        params[i].is_cpu() == grads[i].is_cpu(),
                    op, ": params[", i, "] must be contiguous float32, bfloat16 or float16, like its gradient");
    STD_TORCH_CHECK(grads[i].numel() == selection.numel || grads[i].numel() == selection.count, op, ": grads[", i,
                    "] must have ", selection.numel, " or ", selection.count, " entries");
    x.tensors.push_back({params[i].mutable_data_ptr(), type, x.grads[i].const_data_ptr(), grad_type,
                         grads[i].numel() == selection.count, master.empty() ? nullptr : master[i],
                         !streams.empty() && type != ScalarType::Float,
                         streams.empty() ? 0 : static_cast<uint64_t>(streams[i]), selection});
  }
  return x;
}

inline float read_scalar(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.numel() == 1 && x.scalar_type() == ScalarType::Float && x.is_cpu(), op,
                  ": clip, grad_scale and found_inf must be float32 of one entry");
  return *x.const_data_ptr<float>();
}

inline float gradient_factor(const char* op, const std::optional<Tensor>& clip, const std::optional<Tensor>& grad_scale,
                             bool maximize) {
  const float limit = clip ? read_scalar(op, *clip) : 1.0f, scale = grad_scale ? read_scalar(op, *grad_scale) : 1.0f;
  return (maximize ? -limit : limit) / scale;
}

struct StepBuffers {
  StripBuffer param, grad;
};

// update(position, n, p, g) changes n parameters p in place, given their gradients g.
template <class F>
void step_strip(const StepTensor& x, uint32_t step, const Strip& s, StepBuffers& buffers, const F& update) {
  const float* g = x.compact_grad ? load_block(x.grad, x.grad_type, s.position, s.n, buffers.grad.values)
                                  : load_selected(x.grad, x.grad_type, s, buffers.grad);
  float* p =
      x.master ? x.master + s.position : const_cast<float*>(load_selected(x.param, x.param_type, s, buffers.param));
  update(s.position, s.n, p, g);
  if (x.at_random) round_at_random(p, s.n, x.param_type, x.stream, step, s.position);
  store_selected(p, x.param, x.param_type, s, buffers.param);
}

// update(tensor, position, n, p, g), as above, for all that is selected.
template <class F>
void for_each_step(const StepLists& x, const F& update) {
  std::vector<int64_t> numels;
  for (const StepTensor& t : x.tensors) numels.push_back(t.selection.numel);
  const std::vector<Block> blocks = cut_into_blocks(numels, kSelectionBlock);
  run_queue<StepBuffers>(static_cast<int64_t>(blocks.size()), [&](StepBuffers& buffers, int64_t j) {
    const int64_t i = blocks[j].tensor;
    const StepTensor& tensor = x.tensors[i];
    for_selected_strips(tensor.selection, blocks[j].begin / kSelectionBlock, [&](const Strip& s) {
      step_strip(tensor, x.step, s, buffers, [&](auto... arguments) { update(i, arguments...); });
    });
  });
}

}  // namespace taskarith
