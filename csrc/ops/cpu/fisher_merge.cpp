#include "ops/fisher_merge.h"

#include "math/fisher_merge.h"
#include "utils/task_strips.h"

namespace taskarith {
namespace {

struct Sums {
  alignas(64) double needed[kTaskStrip], mass[kTaskStrip], total[kTaskStrip];
};

// One task. Sums in the order of the tasks.
TASKARITH_SIMD void add_task(const float* __restrict theta, const float* __restrict fisher, FisherWeights weights,
                             double least, double plus, Sums& __restrict sums, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i)
    add_fisher(theta[i], fisher[i], weights, least, plus, sums.needed[i], sums.mass[i], sums.total[i]);
}

TASKARITH_SIMD bool divide(const Sums& __restrict sums, float* __restrict out, int64_t n) {
  int unneeded = 0;
#pragma omp simd reduction(| : unneeded)
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(sums.total[i] / sums.mass[i]);
    unneeded |= sums.needed[i] == 0;
  }
  return unneeded;
}

void average_unneeded(const float* const* theta, const double* shares, int64_t tasks, const Sums& sums, float* out,
                      int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (sums.needed[i] != 0) continue;
    double mean = 0;
    for (int64_t t = 0; t < tasks; ++t) mean += shares[t] * theta[t][i];
    out[i] = static_cast<float>(mean);
  }
}

TensorList fisher_merge_cpu(TensorList finetuned, TensorList fishers, Tensor shares, Tensor factors, double floor,
                            bool add) {
  const int64_t tasks = check_fisher_merge(finetuned, fishers, shares, factors);
  const TensorList first(finetuned.begin(), finetuned.begin() + finetuned.size() / tasks);
  const TaskLists x(first, finetuned, tasks);
  fishers = contiguous(fishers);
  shares = torch::stable::contiguous(shares);
  factors = torch::stable::contiguous(factors);
  const double *share = shares.const_data_ptr<double>(), *factor = factors.const_data_ptr<double>();
  const double least = add ? 0 : floor, plus = add ? floor : 0;
  TensorList out = empty_like_list(x.base);
  for_each_strip(x, [&](const StripReader& strip, int64_t tensor, int64_t begin, int64_t n) {
    alignas(64) float buffer[kTaskStrip];
    Sums sums = {};
    for (int64_t t = 0; t < tasks; ++t) {
      const Tensor& f = fishers[t * x.length() + tensor];
      const float* fisher = load_block(f.const_data_ptr(), f.scalar_type(), begin, n, buffer);
      add_task(strip.finetuned()[t], fisher, {share[t], factor[t]}, least, plus, sums, n);
    }
    write_strip(out[tensor], begin, n, [&](float* target) {
      if (divide(sums, target, n)) average_unneeded(strip.finetuned(), share, tasks, sums, target, n);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("fisher_merge", TORCH_BOX(&fisher_merge_cpu)); }

}  // namespace
}  // namespace taskarith
