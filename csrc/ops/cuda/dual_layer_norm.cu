#include "math/layer_norm.h"
#include "ops/dual_layer_norm.h"
#include "utils/block_reduce.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int kWarps = 4;                   // a block's, each with a row of its own
constexpr int kBlocksAMultiprocessor = 32;  // in turn: the last turn is short

// Null where a tensor is absent or not needed.
struct Arguments {
  const void *x, *dx, *weight, *dweight, *dbias;
  void* dy;
  int64_t rows, width;
  float per_width, eps;  // 1 / width
  Storage storage;
  bool centered, aligned;
};

// each(f) calls f(x, dx) for the elements of the row that this thread has, sum() adds over the threads of the row.
template <class Each, class Sum>
__device__ __forceinline__ NormMoments moments(const Arguments& a, const Each& each, const Sum& sum) {
  NormMoments m{};
  float sums[2] = {};
  if (a.centered) {
    each([&](float x, float dx) {
      sums[0] += x;
      sums[1] += dx;
    });
    sum(sums);
    m.mean = sums[0] * a.per_width;
    m.mean_dx = sums[1] * a.per_width;
  }
  sums[0] = sums[1] = 0;
  each([&](float x, float dx) {
    sums[0] += (x - m.mean) * (x - m.mean);
    sums[1] += (x - m.mean) * dx;
  });
  sum(sums);
  finish_moments(m, sums[0], sums[1], a.per_width, a.eps);
  return m;
}

// n values from the i-th on, or, where the tensor is absent, its constant.
template <int W, class T>
__device__ __forceinline__ void load_or(float absent, const void* tensor, int64_t i, int n, bool whole,
                                        T (&values)[W]) {
#pragma unroll
  for (int j = 0; j < W; ++j) values[j] = from_float<T>(absent);
  if (tensor != nullptr) load_some<W>(static_cast<const T*>(tensor) + i, n, whole, values);
}

// dy of the W elements from column i on, of which n exist.
template <class T, int W>
__device__ __forceinline__ void store_tangent(const Arguments& a, int64_t row, int64_t i, int n, bool whole,
                                              const T (&x)[W], const T (&dx)[W], const NormMoments& m) {
  T weight[W], dweight[W], dbias[W];
  load_or<W>(1, a.weight, i, n, whole, weight);
  load_or<W>(0, a.dweight, i, n, whole, dweight);
  load_or<W>(0, a.dbias, i, n, whole, dbias);
  float dy[W];
#pragma unroll
  for (int j = 0; j < W; ++j)
    dy[j] = carried_input(to_float(x[j]), to_float(dx[j]), to_float(weight[j]), m) +
            carried_weight(to_float(x[j]), to_float(dweight[j]), m) + to_float(dbias[j]);
  store_floats<W>(dy, n, whole, static_cast<T*>(a.dy) + row * a.width + i);
}

// f(constant): whether vectors are whole, that is aligned and not cut by the end of a row.
template <int W, class F>
__device__ __forceinline__ void with_wholeness(const Arguments& a, const F& f) {
  if (a.aligned && a.width % W == 0)
    f(Constant<true>{});
  else
    f(Constant<false>{});
}

// A warp holds a row of at most 32 E elements in its registers and reads it once.
template <class T, int E, class Whole>
__device__ __forceinline__ void carry_by_warp(const Arguments& a, int64_t row, Whole whole) {
  constexpr int W = 16 / sizeof(T), V = E / W;
  const int lane = threadIdx.x % 32, width = static_cast<int>(a.width);
  const int64_t start = row * a.width;
  const auto begin = [&](int v) { return (v * 32 + lane) * W; };
  T x[V][W] = {}, dx[V][W] = {};
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (begin(v) < width) load_or<W>(0, a.x, start + begin(v), width - begin(v), whole, x[v]);
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (begin(v) < width) load_or<W>(0, a.dx, start + begin(v), width - begin(v), whole, dx[v]);
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int j = 0; j < W; ++j)
        if (begin(v) + (whole ? 0 : j) < width) f(to_float(x[v][j]), to_float(dx[v][j]));
  };
  NormMoments m{};
  if (a.x != nullptr)
    m = moments(a, each, [](float (&sums)[2]) {
      for (float& s : sums) s = warp_sum(s);
    });
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (begin(v) < width) store_tangent<T>(a, row, begin(v), width - begin(v), whole, x[v], dx[v], m);
}

// kBlocks of a multiprocessor hold their rows in its registers.
template <int E, int kBlocks>
__global__ void __launch_bounds__(kWarps * 32, kBlocks) dual_layer_norm_kernel(const Arguments a) {
  with_storage(a.storage, [&](auto zero) {
    using T = decltype(zero);
    with_wholeness<16 / sizeof(T)>(a, [&](auto whole) {
      for (int64_t row = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32; row < a.rows;
           row += gridDim.x * int64_t{kWarps})
        carry_by_warp<T, E>(a, row, whole);
    });
  });
}

// A block takes a row of any length and reads it up to three times, the second and third time from the caches.
template <class T, class Whole>
__device__ __forceinline__ void carry_by_block(const Arguments& a, int64_t row, Whole whole) {
  constexpr int W = 16 / sizeof(T);
  const auto each_vector = [&](const auto& f) {
    for (int64_t i = threadIdx.x * W; i < a.width; i += kThreads * W) {
      const int n = static_cast<int>(min(a.width - i, int64_t{W}));
      T x[W], dx[W];
      load_or<W>(0, a.x, row * a.width + i, n, whole, x);
      load_or<W>(0, a.dx, row * a.width + i, n, whole, dx);
      f(i, n, x, dx);
    }
  };
  const auto each = [&](const auto& f) {
    each_vector([&](int64_t, int n, const T(&x)[W], const T(&dx)[W]) {
#pragma unroll
      for (int j = 0; j < W; ++j)
        if (whole || j < n) f(to_float(x[j]), to_float(dx[j]));
    });
  };
  NormMoments m{};
  if (a.x != nullptr) m = moments(a, each, [](float (&sums)[2]) { block_sum<kThreads>(sums); });
  each_vector(
      [&](int64_t i, int n, const T(&x)[W], const T(&dx)[W]) { store_tangent<T>(a, row, i, n, whole, x, dx, m); });
}

__global__ void __launch_bounds__(kThreads) dual_layer_norm_wide_kernel(const Arguments a) {
  with_storage(a.storage, [&](auto zero) {
    using T = decltype(zero);
    with_wholeness<16 / sizeof(T)>(a, [&](auto whole) {
      for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) carry_by_block<T>(a, row, whole);
    });
  });
}

using Kernel = void (*)(Arguments);

// The kernel whose warps hold a row of this width; null if none does.
Kernel kernel_of(int64_t width) {
  constexpr std::pair<int, Kernel> kKernels[] = {
      {8, dual_layer_norm_kernel<8, 8>},   {16, dual_layer_norm_kernel<16, 6>}, {24, dual_layer_norm_kernel<24, 5>},
      {32, dual_layer_norm_kernel<32, 4>}, {40, dual_layer_norm_kernel<40, 3>}, {56, dual_layer_norm_kernel<56, 2>},
  };
  for (const auto& [elements, kernel] : kKernels)
    if (width <= 32 * elements) return kernel;
  return nullptr;
}

Tensor dual_layer_norm_cuda(Tensor x, MaybeTensor dx, MaybeTensor weight, MaybeTensor dweight, MaybeTensor dbias,
                            double eps, bool centered) {
  check_dual_layer_norm(x, dx, weight, dweight, dbias);
  const Launcher launcher("dual_layer_norm", x);
  x = torch::stable::contiguous(x);
  const auto dense = [&](MaybeTensor& tensor) -> const void* {
    if (!tensor.has_value()) return nullptr;
    check_device("dual_layer_norm", {*tensor}, x);
    tensor = torch::stable::contiguous(*tensor);
    return tensor->const_data_ptr();
  };
  Tensor out = torch::stable::empty_like(x);
  Arguments a{};
  a.dx = dense(dx), a.weight = dx.has_value() ? dense(weight) : nullptr;
  a.dweight = dense(dweight), a.dbias = dense(dbias);
  a.x = a.dx != nullptr || a.dweight != nullptr ? x.const_data_ptr() : nullptr;
  a.dy = out.mutable_data_ptr();
  a.width = x.size(x.dim() - 1), a.rows = a.width > 0 ? x.numel() / a.width : 0;
  a.per_width = 1.0f / static_cast<float>(a.width), a.eps = static_cast<float>(eps);
  a.storage = storage_of(x.scalar_type());
  a.centered = centered, a.aligned = all_aligned({a.x, a.dx, a.weight, a.dweight, a.dbias, a.dy});
  if (a.rows == 0) return out;
  const int64_t most = launcher.multiprocessors() * kBlocksAMultiprocessor;
  if (const Kernel kernel = kernel_of(a.width))
    launcher.launch(kernel, std::min<int64_t>((a.rows + kWarps - 1) / kWarps, most), kWarps * 32, 0, a);
  else
    launcher.launch(dual_layer_norm_wide_kernel, std::min(a.rows, most), kThreads, 0, a);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("dual_layer_norm", TORCH_BOX(&dual_layer_norm_cuda)); }

}  // namespace
}  // namespace taskarith
