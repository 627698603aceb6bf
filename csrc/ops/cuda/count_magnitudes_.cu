#include "ops/count_magnitudes_.h"
#include "utils/block_reduce.cuh"
#include "utils/magnitudes.cuh"

namespace taskarith {
namespace {

constexpr int64_t kCountChunk = 16384;

struct Histogram {
  uint64_t low, high, shift;
};

// Only what lies strictly in the bracket goes to memory one by one: what is above it, and the ends, which may be ties
// of very many entries, are counted in registers. Integers: the order of the additions does not show.
template <class Count>
__global__ void __launch_bounds__(kThreads, 4)
    count_magnitudes_kernel(const Table<> table, const Histogram* histograms, Count* counts, const int64_t bins) {
  const int64_t tasks = table.width - 1;
  for (int64_t item = blockIdx.x; item < table.chunks * tasks; item += gridDim.x) {
    const Span<> span = span_of(table, item / tasks);
    const int64_t t = item % tasks;
    const uint32_t low = static_cast<uint32_t>(histograms[t].low), high = static_cast<uint32_t>(histograms[t].high);
    const int shift = static_cast<int>(histograms[t].shift);
    Count* row = counts + t * (bins + 1);
    int above = 0, at_high = 0, at_low = 0;
    with_storage(span.tensor.storage, [&](auto zero) {
      for_magnitudes<decltype(zero)>(span, t, [&](uint32_t bits) {
        above += bits > high;
        at_high += bits == high;
        at_low += bits == low && low < high;
        if (bits > low && bits < high) atomicAdd(row + ((bits - low) >> shift), Count{1});
      });
    });
    const auto add = [&](int64_t column, int count) {
      count = warp_sum(count);
      if (threadIdx.x % 32 == 0 && count > 0) atomicAdd(row + column, static_cast<Count>(count));
    };
    add(bins, above);
    add((high - low) >> shift, at_high);
    add(0, at_low);
  }
}

void count_magnitudes_cuda(Tensor counts, Tensor base, TensorList finetuned, std::vector<int64_t> low,
                           std::vector<int64_t> high, std::vector<int64_t> shift) {
  const int64_t bins = check_count_magnitudes(counts, base, finetuned, low, high, shift);
  for (const TensorList& list : {TensorList{counts}, finetuned}) check_device("count_magnitudes_", list, base);
  const Launcher launcher("count_magnitudes_", base);
  base = torch::stable::contiguous(base);
  finetuned = contiguous(finetuned);
  std::vector<const void*> pointers{base.const_data_ptr()};
  std::vector<uint64_t> words;
  for (size_t t = 0; t < finetuned.size(); ++t) {
    pointers.push_back(finetuned[t].const_data_ptr());
    for (const int64_t number : {low[t], high[t], shift[t]}) words.push_back(static_cast<uint64_t>(number));
  }
  TensorTable<> tensors(kCountChunk);
  tensors.add(base.numel(), base.scalar_type(), 0, pointers);
  const Table<> table = tensors.view(launcher, base);
  const Tensor uploaded = upload(launcher, base, words);
  const Histogram* histograms = static_cast<const Histogram*>(uploaded.const_data_ptr());
  const int64_t items = table.chunks * static_cast<int64_t>(finetuned.size());
  if (counts.scalar_type() == ScalarType::Int)
    launch_over(launcher, items, count_magnitudes_kernel<int>, table, histograms,
                static_cast<int*>(counts.mutable_data_ptr()), bins);
  else
    launch_over(launcher, items, count_magnitudes_kernel<unsigned long long>, table, histograms,
                static_cast<unsigned long long*>(counts.mutable_data_ptr()), bins);
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("count_magnitudes_", TORCH_BOX(&count_magnitudes_cuda)); }

}  // namespace
}  // namespace taskarith
