#include "ops/count_magnitudes_.h"

#include "math/ties_scan.h"
#include "utils/convert.h"
#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 16384;  // elements a work item
constexpr int64_t kStrip = 2048;   // the base stays in the first-level cache while the tasks pass over it

template <class Count>
struct Histogram {
  Bracket bracket;
  int shift;
  Count* counts;  // [bins + 1]
  int64_t bins;

  // Integers: the order of the additions does not show.
  void add(int64_t column, int64_t n) const {
    __atomic_fetch_add(counts + column, static_cast<Count>(n), __ATOMIC_RELAXED);
  }

  void add(const BracketCounts& seen, const uint32_t* inside, int64_t found) const {
    const auto [low, high] = bracket;
    if (seen.above) add(bins, seen.above);
    if (seen.at_high) add((high - low) >> shift, seen.at_high);
    if (seen.at_low) add(0, seen.at_low);
    for (int64_t i = 0; i < found; ++i) add((inside[i] - low) >> shift, 1);
  }
};

template <class Count>
void count_all(Count* table, int64_t bins, const Tensor& base, const TensorList& finetuned,
               const std::vector<int64_t>& low, const std::vector<int64_t>& high, const std::vector<int64_t>& shift) {
  const ScalarType type = base.scalar_type();
  const void* start = base.const_data_ptr();
  std::vector<Histogram<Count>> histograms;
  std::vector<const void*> tasks;
  for (size_t t = 0; t < finetuned.size(); ++t) {
    const Bracket bracket{static_cast<uint32_t>(low[t]), static_cast<uint32_t>(high[t])};
    histograms.push_back({bracket, static_cast<int>(shift[t]), table + static_cast<int64_t>(t) * (bins + 1), bins});
    tasks.push_back(finetuned[t].const_data_ptr());
  }
  const std::vector<Block> blocks = cut_into_blocks({base.numel()}, kBlock);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    alignas(64) float b[kStrip], f[kStrip];
    uint32_t inside[kStrip + kScanSlack];
    for (int64_t j = first; j < last; ++j)
      for (int64_t s = 0; s < blocks[j].size; s += kStrip) {
        const int64_t n = std::min(kStrip, blocks[j].size - s), begin = blocks[j].begin + s;
        const float* from = load_block(start, type, begin, n, b);
        for (size_t t = 0; t < tasks.size(); ++t) {
          BracketCounts seen;
          const int64_t found =
              scan(load_block(tasks[t], type, begin, n, f), from, n, histograms[t].bracket, seen, inside);
          histograms[t].add(seen, inside, found);
        }
      }
  });
}

void count_magnitudes_cpu(Tensor counts, Tensor base, TensorList finetuned, std::vector<int64_t> low,
                          std::vector<int64_t> high, std::vector<int64_t> shift) {
  const int64_t bins = check_count_magnitudes(counts, base, finetuned, low, high, shift);
  base = torch::stable::contiguous(base);
  finetuned = contiguous(finetuned);
  if (counts.scalar_type() == ScalarType::Int)
    count_all(counts.mutable_data_ptr<int32_t>(), bins, base, finetuned, low, high, shift);
  else
    count_all(counts.mutable_data_ptr<int64_t>(), bins, base, finetuned, low, high, shift);
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("count_magnitudes_", TORCH_BOX(&count_magnitudes_cpu)); }

}  // namespace
}  // namespace taskarith
