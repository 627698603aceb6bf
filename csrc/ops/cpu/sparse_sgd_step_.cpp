#include "ops/sparse_sgd_step_.h"

#include "utils/step_strips.h"

namespace taskarith {
namespace {

TASKARITH_SIMD void sgd_strip(const SgdScalars& scalars, int64_t n, float* __restrict p, const float* __restrict g,
                              float* __restrict buffer) {
  const SgdScalars s = scalars;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] = sgd(p[i], g[i], buffer[i], s);
}

void sparse_sgd_step_cpu(TensorList params, TensorList grads, TensorList buffers, TensorList masters, TensorList items,
                         TensorList offsets, std::vector<int64_t> streams, std::optional<Tensor> clip,
                         std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, double lr, double momentum,
                         double dampening, double weight_decay, bool nesterov, TensorList steps, int64_t step,
                         bool maximize) {
  constexpr const char* kOp = "sparse_sgd_step_";
  const SgdLists x = check_sparse_sgd_step(params, grads, buffers, masters, items, offsets, streams, steps, step);
  const StepScalars given = check_scalars(kOp, params, clip, grad_scale, found_inf, maximize);
  if (given.skips()) return;
  const SgdOptions options{lr, momentum, dampening, weight_decay, nesterov, !buffers.empty()};
  std::vector<SgdScalars> scalars;
  for (const StepTensor& t : x.step.tensors)
    scalars.push_back(fold_sgd(options, number_of(step, t.done), given.factor()));
  for_each_step(x.step, [&](int64_t tensor, int64_t position, int64_t n, float* p, const float* g) {
    float none[kSelectionStrip] = {};
    sgd_strip(scalars[tensor], n, p, g, x.buffers.empty() ? none : x.buffers[tensor] + position);
  });
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("sparse_sgd_step_", TORCH_BOX(&sparse_sgd_step_cpu)); }

}  // namespace
}  // namespace taskarith
