#include "ops/consensus.h"

#include "math/tall_mask.h"
#include "utils/task_strips.h"

namespace taskarith {
namespace {

constexpr int64_t kWords = kTaskStrip / 64;

// out[i] = base[i] + scale * sum[i] where the bit is set; n <= 64.
TASKARITH_SIMD void add_agreed(const float* __restrict base, const double* __restrict sum, double scale,
                               uint64_t agreed, float* __restrict out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float added = static_cast<float>(base[i] + scale * sum[i]);
    out[i] = (agreed >> i) & 1 ? added : base[i];
  }
}

TensorList consensus_cpu(TensorList base, TensorList finetuned, Tensor lambdas, int64_t threshold, double scale) {
  const int64_t tasks = check_consensus(base, finetuned, lambdas, threshold);
  const TaskLists x(base, finetuned, tasks);
  lambdas = torch::stable::contiguous(lambdas);
  const double* lambda = lambdas.const_data_ptr<double>();
  TensorList out = empty_like_list(x.base);
  for_each_strip(x, [&](const StripReader& strip, int64_t tensor, int64_t begin, int64_t n) {
    thread_local std::vector<uint64_t> words;
    words.resize(tasks * kWords);
    alignas(64) double sums[kTaskStrip];
    tall_words({strip.base(), strip.finetuned(), lambda, tasks, sums, words.data(), kWords}, n);
    write_strip(out[tensor], begin, n, [&](float* target) {
      for (int64_t i = 0; i < n; i += 64)
        add_agreed(strip.base() + i, sums + i, scale, at_least(&words[i / 64], tasks, kWords, threshold), target + i,
                   std::min<int64_t>(64, n - i));
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("consensus", TORCH_BOX(&consensus_cpu)); }

}  // namespace
}  // namespace taskarith
