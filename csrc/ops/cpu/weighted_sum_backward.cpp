#include "ops/weighted_sum_backward.h"

#include "utils/prefetch.h"
#include "utils/task_strips.h"

namespace taskarith {
namespace {

TASKARITH_SIMD void widen(const float* __restrict x, double* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i];
}

// sums[u] += <grad, finetuned[u] - base> of a strip. The order of additions is fixed at compile time.
TASKARITH_SIMD void add_four_dots(const double* __restrict grad, const float* const* __restrict f,
                                  const double* __restrict base, int64_t n, double* __restrict sums) {
  const float *f0 = f[0], *f1 = f[1], *f2 = f[2], *f3 = f[3];
  double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < n; ++i) {
    s0 += grad[i] * (f0[i] - base[i]);
    s1 += grad[i] * (f1[i] - base[i]);
    s2 += grad[i] * (f2[i] - base[i]);
    s3 += grad[i] * (f3[i] - base[i]);
  }
  sums[0] += s0, sums[1] += s1, sums[2] += s2, sums[3] += s3;
}

TASKARITH_SIMD void add_dot(const double* __restrict grad, const float* __restrict f, const double* __restrict base,
                            int64_t n, double* sum) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t i = 0; i < n; ++i) s += grad[i] * (f[i] - base[i]);
  *sum += s;
}

// partial[t] = the block's share of out[t, tensor].
void sum_block(const TaskLists& x, const TensorList& grads, const Block& block, StripReader& strip, double* partial) {
  alignas(64) float buffer[kTaskStrip];
  alignas(64) double grad[kTaskStrip], base[kTaskStrip];
  for (int64_t s = 0; s < block.size; s += kTaskStrip) {
    const int64_t begin = block.begin + s, n = std::min(kTaskStrip, block.size - s);
    strip.read(block.tensor, begin, n);
    widen(strip.base(), base, n);
    widen(load_block(grads[block.tensor].const_data_ptr(), x.type(block.tensor), begin, n, buffer), grad, n);
    int64_t t = 0;
    for (; t + 4 <= x.tasks; t += 4) {
      for (int64_t u = t; u < t + 4; ++u) prefetch_floats(strip.finetuned()[u] + kPrefetch, kTaskStrip);
      add_four_dots(grad, strip.finetuned() + t, base, n, partial + t);
    }
    for (; t < x.tasks; ++t) add_dot(grad, strip.finetuned()[t], base, n, partial + t);
  }
}

Tensor weighted_sum_backward_cpu(TensorList grads, TensorList base, TensorList finetuned) {
  const int64_t tasks = check_weighted_sum_backward(grads, base, finetuned);
  const TaskLists x(base, finetuned, tasks);
  grads = contiguous(grads);
  const std::vector<Block> blocks = cut_into_blocks(x.numels(), kTaskBlock);
  std::vector<double> partial(blocks.size() * tasks, 0.0);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    StripReader strip(x);
    for (int64_t j = first; j < last; ++j) sum_block(x, grads, blocks[j], strip, &partial[j * tasks]);
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
