#include "ops/sparse_adamw_step_.h"

#include "utils/step_strips.h"

namespace taskarith {
namespace {

TASKARITH_SIMD void adamw_strip(const AdamWScalars& scalars, int64_t n, float* __restrict p, const float* __restrict g,
                                float* __restrict m, float* __restrict v) {
  const AdamWScalars s = scalars;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] = adamw(p[i], g[i], m[i], v[i], s);
}

void sparse_adamw_step_cpu(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                           TensorList masters, TensorList items, TensorList offsets, std::vector<int64_t> streams,
                           std::optional<Tensor> clip, std::optional<Tensor> grad_scale,
                           std::optional<Tensor> found_inf, double lr, double beta1, double beta2, double eps,
                           double weight_decay, TensorList steps, int64_t step, bool maximize) {
  constexpr const char* kOp = "sparse_adamw_step_";
  const AdamWLists x =
      check_sparse_adamw_step(params, grads, exp_avgs, exp_avg_sqs, masters, items, offsets, streams, steps, step);
  const StepScalars given = check_scalars(kOp, params, clip, grad_scale, found_inf, maximize);
  if (given.skips()) return;
  std::vector<AdamWScalars> scalars;
  for (const StepTensor& t : x.step.tensors)
    scalars.push_back(fold_adamw({lr, beta1, beta2, eps, weight_decay}, number_of(step, t.done), given.factor()));
  for_each_step(x.step, [&](int64_t tensor, int64_t position, int64_t n, float* p, const float* g) {
    adamw_strip(scalars[tensor], n, p, g, x.exp_avgs[tensor] + position, x.exp_avg_sqs[tensor] + position);
  });
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("sparse_adamw_step_", TORCH_BOX(&sparse_adamw_step_cpu)); }

}  // namespace
}  // namespace taskarith
