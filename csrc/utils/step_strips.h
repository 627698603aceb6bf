// The walk of a sparse step on the CPU.
#pragma once

#include "math/stochastic_rounding.h"
#include "utils/selected_strips.h"
#include "utils/sparse_step.h"
#include "utils/work_queue.h"

namespace taskarith {

struct StepBuffers {
  StripBuffer param, grad;
};

// update(position, n, p, g) changes n parameters p in place, given their gradients g.
template <class F>
void step_strip(const StepTensor& x, int64_t step, const Strip& s, StepBuffers& buffers, const F& update) {
  if (!x.compact_grad) read_lines(x.grad, x.grad_type, s);
  read_lines(x.param, x.param_type, s);
  const float* g = x.compact_grad ? load_block(x.grad, x.grad_type, s.position, s.n, buffers.grad.values)
                                  : load_selected(x.grad, x.grad_type, s, buffers.grad);
  float* p =
      x.master ? x.master + s.position : const_cast<float*>(load_selected(x.param, x.param_type, s, buffers.param));
  update(s.position, s.n, p, g);
  if (x.at_random) round_at_random(p, s.n, x.param_type, x.stream, static_cast<uint32_t>(step), s.position);
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
      step_strip(tensor, number_of(x.step, tensor.done), s, buffers,
                 [&](auto... arguments) { update(i, arguments...); });
    });
  });
}

}  // namespace taskarith
