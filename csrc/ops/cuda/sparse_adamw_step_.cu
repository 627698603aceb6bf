#include "ops/sparse_adamw_step_.h"
#include "utils/sparse_step.cuh"

namespace taskarith {
namespace {

struct AdamW {
  using Options = AdamWOptions;
  using Scalars = AdamWScalars;
  static constexpr int kNumStates = 2;

  __device__ __forceinline__ static Scalars fold(const Options& options, int64_t step, float factor) {
    return fold_adamw(options, step, factor);
  }
  __device__ __forceinline__ static float update(float p, float grad, float (&state)[2], const Scalars& scalars) {
    return adamw(p, grad, state[0], state[1], scalars);
  }
};

void sparse_adamw_step_cuda(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                            TensorList masters, TensorList items, TensorList offsets, std::vector<int64_t> streams,
                            std::optional<Tensor> clip, std::optional<Tensor> grad_scale,
                            std::optional<Tensor> found_inf, double lr, double beta1, double beta2, double eps,
                            double weight_decay, TensorList steps, int64_t step, bool maximize) {
  constexpr const char* kOp = "sparse_adamw_step_";
  if (params.empty()) return;
  const AdamWLists x =
      check_sparse_adamw_step(params, grads, exp_avgs, exp_avg_sqs, masters, items, offsets, streams, steps, step);
  const StepScalars given = check_scalars(kOp, params, clip, grad_scale, found_inf, maximize);
  for (const TensorList* list : {&grads, &exp_avgs, &exp_avg_sqs, &masters, &items, &offsets, &steps})
    check_device(kOp, *list, params[0]);
  step_on_gpu<AdamW>(kOp, params, x.step, given, {&x.exp_avgs, &x.exp_avg_sqs}, {lr, beta1, beta2, eps, weight_decay});
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("sparse_adamw_step_", TORCH_BOX(&sparse_adamw_step_cuda)); }

}  // namespace
}  // namespace taskarith
