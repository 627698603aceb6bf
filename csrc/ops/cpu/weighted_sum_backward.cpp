#include "ops/weighted_sum_backward.h"

#include "utils/task_strips.h"

namespace taskarith {
namespace {

TASKARITH_SIMD void widen(const float* __restrict x, double* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i];
}

// <grad, finetuned - base> of a strip, in an order of additions that n alone decides.
TASKARITH_SIMD double delta_dot(const double* __restrict grad, const float* __restrict finetuned,
                                const double* __restrict base, int64_t n) {
  constexpr int64_t kLanes = 32;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j)
      lanes[j] += grad[i + j] * (static_cast<double>(finetuned[i + j]) - base[i + j]);
  for (int64_t j = 0; i + j < n; ++j) lanes[j] += grad[i + j] * (static_cast<double>(finetuned[i + j]) - base[i + j]);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
}

// partial[t] = the block's share of out[t, tensor].
void sum_block(const TaskLists& x, const TensorList& grads, const Block& block, double* partial) {
  alignas(64) float buffer[kTaskStrip];
  alignas(64) double grad[kTaskStrip], base[kTaskStrip];
  const ScalarType type = x.type(block.tensor);
  for (int64_t s = 0; s < block.size; s += kTaskStrip) {
    const int64_t begin = block.begin + s, n = std::min(kTaskStrip, block.size - s);
    widen(load_block(grads[block.tensor].const_data_ptr(), type, begin, n, buffer), grad, n);
    widen(load_block(x.base[block.tensor].const_data_ptr(), type, begin, n, buffer), base, n);
    for (int64_t t = 0; t < x.tasks; ++t)
      partial[t] += delta_dot(grad, load_block(x.task(t, block.tensor).const_data_ptr(), type, begin, n, buffer), base, n);
  }
}

Tensor weighted_sum_backward_cpu(TensorList grads, TensorList base, TensorList finetuned) {
  const int64_t tasks = check_weighted_sum_backward(grads, base, finetuned);
  const TaskLists x(base, finetuned, tasks);
  grads = contiguous(grads);
  const std::vector<Block> blocks = cut_into_blocks(x.numels(), kTaskBlock);
  std::vector<double> partial(blocks.size() * tasks, 0.0);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) sum_block(x, grads, blocks[j], &partial[j * tasks]);
  });
  Tensor out = torch::stable::empty({tasks, x.length()}, ScalarType::Double);
  double* sums = out.mutable_data_ptr<double>();
  std::fill_n(sums, tasks * x.length(), 0.0);
  for (size_t j = 0; j < blocks.size(); ++j)
    for (int64_t t = 0; t < tasks; ++t) sums[t * x.length() + blocks[j].tensor] += partial[j * tasks + t];
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("weighted_sum_backward", TORCH_BOX(&weighted_sum_backward_cpu)); }

}  // namespace
}  // namespace taskarith
