#include "ops/dual_glu.h"

#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 2048;

using Combine = void (*)(const float*, const float*, const float*, const float*, float*, int64_t);

#define TASKARITH_COMBINE(name, form)                                                                        \
  TASKARITH_SIMD void name(const float* __restrict a, const float* __restrict da, const float* __restrict b, \
                           const float* __restrict db, float* __restrict dy, int64_t n) {                    \
    _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) dy[i] =                                              \
        gate_slope<form>(a[i]) * b[i] * da[i] + gate_value<form>(a[i]) * db[i];                              \
  }

TASKARITH_COMBINE(combine_relu, GateForm::kRelu)
TASKARITH_COMBINE(combine_silu, GateForm::kSilu)
TASKARITH_COMBINE(combine_erf, GateForm::kErf)
TASKARITH_COMBINE(combine_tanh, GateForm::kTanh)
#undef TASKARITH_COMBINE

Combine combine_of(GateForm form) {
  switch (form) {
    case GateForm::kRelu:
      return combine_relu;
    case GateForm::kSilu:
      return combine_silu;
    case GateForm::kErf:
      return combine_erf;
    default:
      return combine_tanh;
  }
}

Tensor dual_glu_cpu(Tensor a, std::optional<Tensor> da, Tensor b, std::optional<Tensor> db, std::string form) {
  const Combine combine = combine_of(check_dual_glu(a, da, b, db, form));
  const ScalarType type = a.scalar_type();
  Tensor operands[4] = {torch::stable::contiguous(a), torch::stable::contiguous(da.value_or(a)),
                        torch::stable::contiguous(b), torch::stable::contiguous(db.value_or(a))};
  const bool present[4] = {true, da.has_value(), true, db.has_value()};
  const void* from[4];
  for (int i = 0; i < 4; ++i) from[i] = operands[i].const_data_ptr();
  Tensor out = torch::stable::empty_like(operands[0]);
  void* const py = out.mutable_data_ptr();
  const int64_t numel = a.numel();
  parallel_ranges((numel + kBlock - 1) / kBlock, [&](int64_t first, int64_t last) {
    static const float zeros[kBlock] = {};
    float x[4][kBlock], y[kBlock];
    for (int64_t j = first; j < last; ++j) {
      const int64_t begin = j * kBlock, n = std::min(kBlock, numel - begin);
      const float* rows[4];
      for (int i = 0; i < 4; ++i) rows[i] = present[i] ? load_block(from[i], type, begin, n, x[i]) : zeros;
      float* const target = type == ScalarType::Float ? static_cast<float*>(py) + begin : y;
      combine(rows[0], rows[1], rows[2], rows[3], target, n);
      if (target == y) store_block(y, py, type, begin, n);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("dual_glu", TORCH_BOX(&dual_glu_cpu)); }

}  // namespace
}  // namespace taskarith
