#include "ops/dual_gelu.h"
#include "utils/array_steps.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int kVectors = 2;                       // of 16 bytes of x and of dx, that a thread loads before it computes
constexpr int kBytes = kThreads * 16 * kVectors;  // of x, that a block takes at a time

struct Arrays {
  const void *x, *dx;
  void* dy;
  int64_t numel;
  Storage storage;
  bool aligned;
};

// This thread's vectors, which lie apart by what the block's other threads take; n elements are left from i on.
template <GeluForm kForm, class T>
__device__ __forceinline__ void multiply(const Arrays& a, int64_t i, int n, bool whole) {
  constexpr int W = 16 / sizeof(T), kApart = kThreads * W;
  T x[kVectors][W], dx[kVectors][W];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    load_some<W>(static_cast<const T*>(a.x) + i + v * kApart, n - v * kApart, whole, x[v]);
    load_some<W>(static_cast<const T*>(a.dx) + i + v * kApart, n - v * kApart, whole, dx[v]);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float dy[W];
#pragma unroll
    for (int j = 0; j < W; ++j) dy[j] = gelu_slope<kForm>(to_float(x[v][j])) * to_float(dx[v][j]);
    store_floats<W>(dy, n - v * kApart, whole, static_cast<T*>(a.dy) + i + v * kApart);
  }
}

template <GeluForm kForm, class T>
__device__ __forceinline__ void multiply(const Arrays& a) {
  constexpr int kStep = kBytes / sizeof(T), W = 16 / sizeof(T);
  for_each_step<kStep>(a.numel, a.aligned, [&](int64_t begin, int left, auto whole) {
    const int first = threadIdx.x * W;
    multiply<kForm, T>(a, begin + first, left - first, whole);
  });
}

template <GeluForm kForm>
__global__ void __launch_bounds__(kThreads) dual_gelu_kernel(const Arrays a) {
  with_storage(a.storage, [&](auto zero) { multiply<kForm, decltype(zero)>(a); });
}

Tensor dual_gelu_cuda(Tensor x, Tensor dx, std::string approximate) {
  const GeluForm form = check_dual_gelu(x, dx, approximate);
  check_device("dual_gelu", {dx}, x);
  const Launcher launcher("dual_gelu", x);
  x = torch::stable::contiguous(x);
  dx = torch::stable::contiguous(dx);
  Tensor out = torch::stable::empty_like(x);
  const Arrays a{
      x.const_data_ptr(),          dx.const_data_ptr(),
      out.mutable_data_ptr(),      x.numel(),
      storage_of(x.scalar_type()), all_aligned({x.const_data_ptr(), dx.const_data_ptr(), out.const_data_ptr()})};
  const auto kernel = form == GeluForm::kErf    ? dual_gelu_kernel<GeluForm::kErf>
                      : form == GeluForm::kTanh ? dual_gelu_kernel<GeluForm::kTanh>
                                                : dual_gelu_kernel<GeluForm::kQuick>;
  const int64_t grid = blocks_for_steps(launcher, a.numel, kBytes / element_size(x.scalar_type()));
  if (grid > 0) launcher.launch(kernel, grid, kThreads, 0, a);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("dual_gelu", TORCH_BOX(&dual_gelu_cuda)); }

}  // namespace
}  // namespace taskarith
