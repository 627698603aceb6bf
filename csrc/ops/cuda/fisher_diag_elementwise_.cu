#include "ops/fisher_diag_elementwise_.h"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int kLanes = 8;                  // threads side by side: 128 bytes of a token's gradient
constexpr int kLines = kThreads / kLanes;  // tokens, or samples, that a block reads at a time
constexpr int64_t kItems = 1024;           // work items that fill a GPU; a constant, so that every GPU adds alike

// An item is a strip of columns and a part of the samples.
struct Arguments {
  const void *grad_y, *x;   // [samples, tokens, d]; x is null for ones
  float *fisher, *partial;  // [d]; [parts, d], null if there is one part
  int64_t samples, tokens, d;
  int64_t strips, parts, part;  // samples in a part
  float scale;
  Storage grad_storage, x_storage;
  bool aligned, by_tokens;  // whether a block's lines are tokens of one sample, else they are samples
};

// x[j] becomes the sum over the block's lines, in every thread.
template <int W>
__device__ __forceinline__ void sum_lines(float (&x)[W]) {
  constexpr int kWarps = kThreads / 32;
  TASKARITH_SHARED(float, sums, [kWarps][kLanes][W]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % kLanes;
#pragma unroll
  for (int j = 0; j < W; ++j) {
#pragma unroll
    for (int step = kLanes; step < 32; step *= 2) x[j] += __shfl_xor_sync(~0u, x[j], step);
    if (threadIdx.x % 32 < kLanes) sums[warp][lane][j] = x[j];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < W; ++j) {
    x[j] = sums[0][lane][j];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) x[j] += sums[w][lane][j];
  }
  __syncthreads();  // the next call may write
}

// gradient[j] += the sum of the sample's tokens first, first + step, .. in the n columns from `column` on.
template <class G, class X, int W, class Whole, class Multiplied>
__device__ __forceinline__ void add_tokens(const Arguments& a, int64_t sample, int first, int step, int64_t column,
                                           int n, Whole whole, Multiplied multiplied, float (&gradient)[W]) {
  [[maybe_unused]] constexpr int kAhead = Whole{} ? 4 : 1;  // tokens whose loads do not wait for one another
#pragma unroll kAhead
  for (int64_t s = first; s < a.tokens; s += step) {
    const int64_t at = (sample * a.tokens + s) * a.d + column;
    float g[W], x[W] = {};
    load_floats<W>(static_cast<const G*>(a.grad_y) + at, n, whole, g);
    if (multiplied) load_floats<W>(static_cast<const X*>(a.x) + at, n, whole, x);
#pragma unroll
    for (int j = 0; j < W; ++j) gradient[j] += multiplied ? g[j] * x[j] : g[j];
  }
}

template <class G, class X, class Whole, class Multiplied>
__device__ __forceinline__ void add_item(const Arguments& a, int64_t item, Whole whole, Multiplied multiplied) {
  constexpr int W = 16 / sizeof(G);
  const int line = threadIdx.x / kLanes, step = a.by_tokens ? 1 : kLines;
  const int64_t column = (item % a.strips * kLanes + threadIdx.x % kLanes) * W, part = item / a.strips;
  const int n = static_cast<int>(min(a.d - column, int64_t{W}));
  float total[W] = {};
  for (int64_t b = part * a.part + (a.by_tokens ? 0 : line); b < min((part + 1) * a.part, a.samples); b += step) {
    float gradient[W] = {};
    if (n > 0) add_tokens<G, X>(a, b, a.by_tokens ? line : 0, kLines / step, column, n, whole, multiplied, gradient);
    if (a.by_tokens) sum_lines(gradient);
#pragma unroll
    for (int j = 0; j < W; ++j) total[j] += gradient[j] * gradient[j];
  }
  if (!a.by_tokens) sum_lines(total);
  if (line > 0) return;
#pragma unroll
  for (int j = 0; j < W; ++j) {
    if (j >= n) continue;
    if (a.partial != nullptr)
      a.partial[part * a.d + column + j] = total[j];
    else
      a.fisher[column + j] += a.scale * total[j];
  }
}

__global__ void __launch_bounds__(kThreads, 2) fisher_diag_elementwise_kernel(const Arguments a) {
  const auto add_items = [&](auto g, auto x, auto multiplied) {
    using G = decltype(g);
    for (int64_t item = blockIdx.x; item < a.strips * a.parts; item += gridDim.x)
      if (a.aligned && a.d % (16 / sizeof(G)) == 0)
        add_item<G, decltype(x)>(a, item, Constant<true>{}, multiplied);
      else
        add_item<G, decltype(x)>(a, item, Constant<false>{}, multiplied);
  };
  with_storage(a.grad_storage, [&](auto g) {
    if (a.x == nullptr)
      add_items(g, g, Constant<false>{});
    else
      with_storage(a.x_storage, [&](auto x) { add_items(g, x, Constant<true>{}); });
  });
}

__global__ void __launch_bounds__(kThreads) add_parts_kernel(const Arguments a) {
  for (int64_t c = blockIdx.x * int64_t{kThreads} + threadIdx.x; c < a.d; c += gridDim.x * int64_t{kThreads}) {
    float sum = 0;
#pragma unroll 8
    for (int64_t p = 0; p < a.parts; ++p) sum += a.partial[p * a.d + c];
    a.fisher[c] += a.scale * sum;
  }
}

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

void fisher_diag_elementwise_cuda(Tensor fisher, Tensor grad_y, std::optional<Tensor> x, double scale) {
  check_fisher_diag_elementwise(fisher, grad_y, x);
  check_device("fisher_diag_elementwise_", x ? TensorList{grad_y, *x} : TensorList{grad_y}, fisher);
  const Launcher launcher("fisher_diag_elementwise_", fisher);
  const TensorList in = contiguous(x ? TensorList{grad_y, *x} : TensorList{grad_y});
  if (grad_y.numel() == 0) return;
  Arguments a{};
  a.grad_y = in[0].const_data_ptr();
  a.x = x ? in[1].const_data_ptr() : nullptr;
  a.fisher = fisher.mutable_data_ptr<float>();
  a.samples = grad_y.size(0), a.tokens = grad_y.size(1), a.d = grad_y.size(2);
  a.scale = static_cast<float>(scale);
  a.grad_storage = storage_of(grad_y.scalar_type());
  a.x_storage = x ? storage_of(x->scalar_type()) : a.grad_storage;
  a.aligned = all_aligned({a.grad_y, a.x});
  a.by_tokens = a.tokens >= kLines / 4;
  a.strips = divided(a.d * element_size(grad_y.scalar_type()), 16 * kLanes);
  const int64_t step = a.by_tokens ? 1 : kLines, steps = divided(a.samples, step);
  a.part = step * divided(steps, std::min(steps, divided(kItems, a.strips)));
  a.parts = divided(a.samples, a.part);
  std::optional<Tensor> partial;
  if (a.parts > 1) {
    partial = torch::stable::new_empty(fisher, {a.parts, a.d});
    a.partial = partial->mutable_data_ptr<float>();
  }
  launch_over(launcher, a.strips * a.parts, fisher_diag_elementwise_kernel, a);
  if (partial) launch_over(launcher, divided(a.d, kThreads), add_parts_kernel, a);
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("fisher_diag_elementwise_", TORCH_BOX(&fisher_diag_elementwise_cuda)); }

}  // namespace
}  // namespace taskarith
