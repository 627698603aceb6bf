#include "ops/sparse_sgd_step_.h"
#include "utils/sparse_step.cuh"

namespace taskarith {
namespace {

template <int states>
struct Sgd {
  using Options = SgdOptions;
  using Scalars = SgdScalars;
  static constexpr int kNumStates = states;

  __device__ __forceinline__ static Scalars fold(const Options& options, int64_t step, float factor) {
    return fold_sgd(options, step, factor);
  }
  __device__ __forceinline__ static float update(float p, float grad, float (&state)[1], const Scalars& scalars) {
    float buffer = states ? state[0] : 0.0f;
    const float updated = sgd(p, grad, buffer, scalars);
    state[0] = buffer;
    return updated;
  }
};

void sparse_sgd_step_cuda(TensorList params, TensorList grads, TensorList buffers, TensorList masters, TensorList items,
                          TensorList offsets, std::vector<int64_t> streams, std::optional<Tensor> clip,
                          std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, double lr, double momentum,
                          double dampening, double weight_decay, bool nesterov, TensorList steps, int64_t step,
                          bool maximize) {
  constexpr const char* kOp = "sparse_sgd_step_";
  if (params.empty()) return;
  const SgdLists x = check_sparse_sgd_step(params, grads, buffers, masters, items, offsets, streams, steps, step);
  const StepScalars given = check_scalars(kOp, params, clip, grad_scale, found_inf, maximize);
  for (const TensorList* list : {&grads, &buffers, &masters, &items, &offsets, &steps})
    check_device(kOp, *list, params[0]);
  const SgdOptions options{lr, momentum, dampening, weight_decay, nesterov, !buffers.empty()};
  if (buffers.empty())
    step_on_gpu<Sgd<0>>(kOp, params, x.step, given, {}, options);
  else
    step_on_gpu<Sgd<1>>(kOp, params, x.step, given, {&x.buffers}, options);
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("sparse_sgd_step_", TORCH_BOX(&sparse_sgd_step_cuda)); }

}  // namespace
}  // namespace taskarith
