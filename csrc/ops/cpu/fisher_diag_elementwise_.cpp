#include "ops/fisher_diag_elementwise_.h"

#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kStrip = 256;  // entries a work item: their sums stay in the first cache

TASKARITH_SIMD void add(const float* __restrict x, float* __restrict sum, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

TASKARITH_SIMD void add_product(const float* __restrict x, const float* __restrict y, float* __restrict sum,
                                int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i] * y[i];
}

TASKARITH_SIMD void add_square(const float* __restrict x, float scale, float* __restrict sum, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i] * x[i] * scale;
}

void add_strip(const Tensor& grad_y, const Tensor* x, float scale, int64_t begin, int64_t n, float* fisher) {
  const int64_t tokens = grad_y.size(1), d = grad_y.size(2);
  alignas(64) float gradient[kStrip], g[kStrip], f[kStrip];
  for (int64_t b = 0; b < grad_y.size(0); ++b) {
    std::memset(gradient, 0, sizeof(gradient));
    for (int64_t s = 0; s < tokens; ++s) {
      const int64_t at = (b * tokens + s) * d + begin;
      const float* from = load_block(grad_y.const_data_ptr(), grad_y.scalar_type(), at, n, g);
      if (x)
        add_product(from, load_block(x->const_data_ptr(), x->scalar_type(), at, n, f), gradient, n);
      else
        add(from, gradient, n);
    }
    add_square(gradient, scale, fisher + begin, n);
  }
}

void fisher_diag_elementwise_cpu(Tensor fisher, Tensor grad_y, std::optional<Tensor> x, double scale) {
  check_fisher_diag_elementwise(fisher, grad_y, x);
  const TensorList in = contiguous(x ? TensorList{grad_y, *x} : TensorList{grad_y});
  float* const out = static_cast<float*>(fisher.mutable_data_ptr());
  const int64_t d = fisher.size(0);
  parallel_ranges((d + kStrip - 1) / kStrip, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j)
      add_strip(in[0], x ? &in[1] : nullptr, static_cast<float>(scale), j * kStrip, std::min(kStrip, d - j * kStrip),
                out);
  });
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) {
  m.impl("fisher_diag_elementwise_", TORCH_BOX(&fisher_diag_elementwise_cpu));
}

}  // namespace
}  // namespace taskarith
