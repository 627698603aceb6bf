#include "ops/dual_gelu.h"

#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 4096;

TASKARITH_SIMD void multiply_erf(const float* __restrict x, const float* __restrict dx, float* __restrict dy,
                                 int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dy[i] = gelu_slope<GeluForm::kErf>(x[i]) * dx[i];
}

TASKARITH_SIMD void multiply_tanh(const float* __restrict x, const float* __restrict dx, float* __restrict dy,
                                  int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dy[i] = gelu_slope<GeluForm::kTanh>(x[i]) * dx[i];
}

TASKARITH_SIMD void multiply_quick(const float* __restrict x, const float* __restrict dx, float* __restrict dy,
                                   int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dy[i] = gelu_slope<GeluForm::kQuick>(x[i]) * dx[i];
}

Tensor dual_gelu_cpu(Tensor x, Tensor dx, std::string approximate) {
  const GeluForm form = check_dual_gelu(x, dx, approximate);
  const auto multiply =
      form == GeluForm::kErf ? multiply_erf : (form == GeluForm::kTanh ? multiply_tanh : multiply_quick);
  x = torch::stable::contiguous(x);
  dx = torch::stable::contiguous(dx);
  Tensor out = torch::stable::empty_like(x);
  const ScalarType type = x.scalar_type();
  const void *const px = x.const_data_ptr(), *const pdx = dx.const_data_ptr();
  void* const py = out.mutable_data_ptr();
  const int64_t numel = x.numel();
  parallel_ranges((numel + kBlock - 1) / kBlock, [&](int64_t first, int64_t last) {
    float a[kBlock], b[kBlock], y[kBlock];
    for (int64_t j = first; j < last; ++j) {
      const int64_t begin = j * kBlock, n = std::min(kBlock, numel - begin);
      const float* const u = load_block(px, type, begin, n, a);
      const float* const du = load_block(pdx, type, begin, n, b);
      float* const target = type == ScalarType::Float ? static_cast<float*>(py) + begin : y;
      multiply(u, du, target, n);
      if (target == y) store_block(y, py, type, begin, n);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("dual_gelu", TORCH_BOX(&dual_gelu_cpu)); }

}  // namespace
}  // namespace taskarith
