#include "math/ties_scan.h"
#include "utils/check.h"
#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 16384;  // elements a work item
constexpr int64_t kStrip = 2048;

struct Strips {
  const Tensor& base;
  const Tensor& finetuned;

  // f(floats of the model, floats of the base, n) over the entries from `begin` on.
  template <class F>
  void each(const Block& block, const F& f) const {
    alignas(64) float a[kStrip], b[kStrip];
    const ScalarType type = base.scalar_type();
    for (int64_t s = 0; s < block.size; s += kStrip) {
      const int64_t n = std::min(kStrip, block.size - s), begin = block.begin + s;
      const float* from = load_block(base.const_data_ptr(), type, begin, n, b);
      f(load_block(finetuned.const_data_ptr(), type, begin, n, a), from, n);
    }
  }
};

TASKARITH_SIMD int64_t count_strip(const float* __restrict finetuned, const float* __restrict base, uint32_t value,
                                   int64_t n) {
  int32_t equal = 0;
#pragma omp simd reduction(+ : equal)
  for (int64_t i = 0; i < n; ++i) equal += ordered_magnitude(finetuned[i] - base[i]) == value ? 1 : 0;
  return equal;
}

// Position after the rank-th (from 1) equal entry of the block, counted from the block's beginning.
int64_t end_of_rank(const Strips& strips, const Block& block, uint32_t value, int64_t rank) {
  int64_t end = 0, position = 0;
  strips.each(block, [&](const float* f, const float* b, int64_t n) {
    for (int64_t i = 0; i < n && rank > 0; ++i)
      if (ordered_magnitude(f[i] - b[i]) == value && --rank == 0) end = position + i + 1;
    position += n;
  });
  return end;
}

Tensor tie_cutoffs_cpu(Tensor base, TensorList finetuned, std::vector<int64_t> values, std::vector<int64_t> left) {
  const int64_t tasks = check_task_lists("tie_cutoffs", {base}, finetuned);
  STD_TORCH_CHECK(static_cast<int64_t>(values.size()) == tasks && static_cast<int64_t>(left.size()) == tasks,
                  "tie_cutoffs: values and left need T=", tasks, " entries");
  base = torch::stable::contiguous(base);
  finetuned = contiguous(finetuned);
  const std::vector<Block> blocks = cut_into_blocks({base.numel()}, kBlock);
  const int64_t count = static_cast<int64_t>(blocks.size());
  std::vector<int64_t> equal(tasks * count, 0);
  parallel_ranges(tasks * count, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j)
      Strips{base, finetuned[j / count]}.each(blocks[j % count], [&](const float* f, const float* b, int64_t n) {
        equal[j] += count_strip(f, b, static_cast<uint32_t>(values[j / count]), n);
      });
  });
  Tensor out = torch::stable::empty({2, tasks}, ScalarType::Long);
  int64_t* cutoffs = out.mutable_data_ptr<int64_t>();
  for (int64_t t = 0; t < tasks; ++t) {
    int64_t rest = left[t], j = 0;
    while (j < count && rest >= equal[t * count + j]) rest -= equal[t * count + j++];
    cutoffs[t] =
        j == count
            ? base.numel()
            : blocks[j].begin +
                  (rest > 0 ? end_of_rank({base, finetuned[t]}, blocks[j], static_cast<uint32_t>(values[t]), rest) : 0);
    cutoffs[tasks + t] = j == count ? rest : 0;
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("tie_cutoffs", TORCH_BOX(&tie_cutoffs_cpu)); }

}  // namespace
}  // namespace taskarith
