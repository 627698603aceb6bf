#include "ops/weighted_sum.h"

#include "math/weighted_sum.h"
#include "utils/huge_pages.h"
#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 16384;  // elements a work item; the inner strips below stay in the first-level cache
constexpr int64_t kStrip = 512;

TASKARITH_SIMD void start(const float* __restrict base, double* __restrict base64, double* __restrict sum, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] = base64[i] = base[i];
}

// Four tasks a sweep keep the running sum in registers; the order of additions is the order of the tasks.
TASKARITH_SIMD void add_four(const float* const* __restrict f, const double* __restrict w,
                             const double* __restrict base, double* __restrict sum, int64_t n) {
  const float *f0 = f[0], *f1 = f[1], *f2 = f[2], *f3 = f[3];
  const double w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    double s = add_weighted_delta(sum[i], w0, f0[i], base[i]);
    s = add_weighted_delta(s, w1, f1[i], base[i]);
    s = add_weighted_delta(s, w2, f2[i], base[i]);
    sum[i] = add_weighted_delta(s, w3, f3[i], base[i]);
  }
}

TASKARITH_SIMD void add_one(const float* __restrict f, double w, const double* __restrict base, double* __restrict sum,
                            int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] = add_weighted_delta(sum[i], w, f[i], base[i]);
}

TASKARITH_SIMD void finish(const double* __restrict sum, float* __restrict out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(sum[i]);
}

struct Tensors {
  ScalarType type;
  const void* base;
  std::vector<const void*> finetuned;  // [T]
  std::vector<double> weights;         // [T]
  void* out;
};

void weighted_sum_strip(const Tensors& x, int64_t begin, int64_t n) {
  alignas(64) double base64[kStrip], sum[kStrip];
  alignas(64) float buffer[4][kStrip];
  const int64_t tasks = static_cast<int64_t>(x.finetuned.size());
  start(load_block(x.base, x.type, begin, n, buffer[0]), base64, sum, n);
  int64_t t = 0;
  for (; t + 4 <= tasks; t += 4) {
    const float* f[4];
    for (int64_t u = 0; u < 4; ++u) f[u] = load_block(x.finetuned[t + u], x.type, begin, n, buffer[u]);
    add_four(f, &x.weights[t], base64, sum, n);
  }
  for (; t < tasks; ++t) add_one(load_block(x.finetuned[t], x.type, begin, n, buffer[0]), x.weights[t], base64, sum, n);
  if (x.type == ScalarType::Float) {
    finish(sum, static_cast<float*>(x.out) + begin, n);
  } else {
    finish(sum, buffer[0], n);
    store_block(buffer[0], x.out, x.type, begin, n);
  }
}

TensorList weighted_sum_cpu(TensorList base, TensorList finetuned, Tensor weights) {
  const int64_t tasks = check_weighted_sum(base, finetuned, weights);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  weights = torch::stable::contiguous(weights);
  const int64_t num_tensors = static_cast<int64_t>(base.size());
  const double* w = weights.const_data_ptr<double>();
  TensorList out;
  std::vector<Tensors> views(num_tensors);
  std::vector<int64_t> numels;
  for (int64_t i = 0; i < num_tensors; ++i) {
    out.push_back(torch::stable::empty_like(base[i]));
    numels.push_back(base[i].numel());
    advise_huge_pages(out[i].mutable_data_ptr(), numels[i] * element_size(base[i].scalar_type()));
    views[i] = {base[i].scalar_type(), base[i].const_data_ptr(), {}, {}, out[i].mutable_data_ptr()};
    for (int64_t t = 0; t < tasks; ++t) {
      views[i].finetuned.push_back(finetuned[t * num_tensors + i].const_data_ptr());
      views[i].weights.push_back(w[t * num_tensors + i]);
    }
  }
  const std::vector<Block> blocks = cut_into_blocks(numels, kBlock);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j)
      for (int64_t s = 0; s < blocks[j].size; s += kStrip)
        weighted_sum_strip(views[blocks[j].tensor], blocks[j].begin + s, std::min(kStrip, blocks[j].size - s));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("weighted_sum", TORCH_BOX(&weighted_sum_cpu)); }

}  // namespace
}  // namespace taskarith
