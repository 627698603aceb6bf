// What the optimizers' steps over selected entries have in common: lists, checks, and the walk.
#pragma once

#include <optional>

#include "math/stochastic_rounding.h"
#include "utils/selection.h"
#include "utils/work_queue.h"

namespace taskarith {

// Owns what a step reads. grads[i] is like params[i] or compact; masters: none, or compact float32 weights;
// streams: none, or one key of the random rounding a tensor.
struct StepLists {
  TensorList params, grads, masters;
  std::vector<Selection> selections;
  std::vector<int64_t> streams;
  int64_t step;

  bool compact(int64_t i) const { return grads[i].numel() == selections[i].count; }
};

inline void check_compact(const char* op, const char* name, const TensorList& list, const StepLists& x) {
  STD_TORCH_CHECK(list.size() == x.params.size(), op, ": ", name, " must have the length of params");
  for (size_t i = 0; i < list.size(); ++i)
    STD_TORCH_CHECK(list[i].scalar_type() == ScalarType::Float && list[i].is_contiguous() &&
                        list[i].numel() == x.selections[i].count && list[i].is_cpu() == x.params[i].is_cpu(),
                    op, ": ", name, "[", i, "] must be contiguous float32 [count=", x.selections[i].count, "]");
}

inline StepLists check_step(const char* op, const TensorList& params, const TensorList& grads,
                            const TensorList& masters, const TensorList& items, const TensorList& offsets,
                            const std::vector<int64_t>& streams, int64_t step) {
  StepLists x{params, contiguous(grads), masters, {}, streams, step};
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && items.size() == n && offsets.size() == n && step >= 1, op,
                  ": the lists differ in length, or step is not positive");
  for (size_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(is_storage_type(params[i].scalar_type()) && is_storage_type(grads[i].scalar_type()), op,
                    ": params and grads must be float32, bfloat16 or float16");
    STD_TORCH_CHECK(params[i].is_contiguous() && params[i].is_cpu() == grads[i].is_cpu(), op, ": params[", i,
                    "] must be contiguous and on its gradient's device");
    x.selections.push_back(check_selection(op, items[i], offsets[i], params[i].numel()));
    STD_TORCH_CHECK(grads[i].numel() == params[i].numel() || x.compact(static_cast<int64_t>(i)), op, ": grads[", i,
                    "] must have ", params[i].numel(), " or ", x.selections[i].count, " entries");
  }
  if (!masters.empty()) check_compact(op, "masters", masters, x);
  STD_TORCH_CHECK(streams.empty() || (streams.size() == n && masters.empty()), op,
                  ": streams need one key a tensor, and no masters");
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

// update(tensor, position, n, p, g) changes n parameters p in place, given their gradients g.
template <class F>
void step_strip(const StepLists& x, int64_t tensor, const Strip& s, StepBuffers& buffers, const F& update) {
  const Tensor &param = x.params[tensor], &grad = x.grads[tensor];
  const ScalarType type = param.scalar_type();
  void* weights = param.mutable_data_ptr();
  const float* g = x.compact(tensor)
                       ? load_block(grad.const_data_ptr(), grad.scalar_type(), s.position, s.n, buffers.grad.values)
                       : load_selected(grad.const_data_ptr(), grad.scalar_type(), s, buffers.grad);
  float* p = x.masters.empty() ? const_cast<float*>(load_selected(weights, type, s, buffers.param))
                               : x.masters[tensor].mutable_data_ptr<float>() + s.position;
  update(tensor, s.position, s.n, p, g);
  if (!x.streams.empty() && type != ScalarType::Float)
    round_at_random(p, s.n, type, static_cast<uint64_t>(x.streams[tensor]), static_cast<uint32_t>(x.step), s.position);
  store_selected(p, weights, type, s, buffers.param);
}

template <class F>
void for_each_step(const StepLists& x, const F& update) {
  std::vector<int64_t> numels;
  for (const Tensor& p : x.params) numels.push_back(p.numel());
  const std::vector<Block> blocks = cut_into_blocks(numels, kSelectionBlock);
  run_queue<StepBuffers>(static_cast<int64_t>(blocks.size()), [&](StepBuffers& buffers, int64_t j) {
    const int64_t tensor = blocks[j].tensor;
    for_selected_strips(x.selections[tensor], blocks[j].begin / kSelectionBlock,
                        [&](const Strip& s) { step_strip(x, tensor, s, buffers, update); });
  });
}

}  // namespace taskarith
