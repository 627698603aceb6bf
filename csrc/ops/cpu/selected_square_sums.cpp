#include "ops/selected_square_sums.h"

#include "utils/selected_strips.h"
#include "utils/work_queue.h"

namespace taskarith {
namespace {

TASKARITH_SIMD double square_sum(const float* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

// One sum a block, added in the order of the blocks: the threads do not show.
Tensor selected_square_sums_cpu(TensorList tensors, TensorList items, TensorList offsets, std::vector<int64_t> numels) {
  const std::vector<Selection> x = check_selected_square_sums(tensors, items, offsets, numels);
  tensors = contiguous(tensors);
  std::vector<int64_t> sizes;
  std::vector<std::pair<const void*, ScalarType>> views;
  for (const Tensor& t : tensors) views.emplace_back(t.const_data_ptr(), t.scalar_type());
  for (const Selection& s : x) sizes.push_back(s.numel);
  const std::vector<Block> blocks = cut_into_blocks(sizes, kSelectionBlock);
  std::vector<double> sums(blocks.size(), 0.0);
  run_queue<StripBuffer>(static_cast<int64_t>(blocks.size()), [&](StripBuffer& buffer, int64_t j) {
    const auto& [data, type] = views[blocks[j].tensor];
    for_selected_strips(x[blocks[j].tensor], blocks[j].begin / kSelectionBlock, [&](const Strip& s) {
      read_lines(data, type, s);
      sums[j] += square_sum(load_selected(data, type, s, buffer), s.n);
    });
  });
  Tensor out = torch::stable::empty({static_cast<int64_t>(tensors.size())}, ScalarType::Double);
  double* totals = out.mutable_data_ptr<double>();
  std::fill_n(totals, tensors.size(), 0.0);
  for (size_t j = 0; j < blocks.size(); ++j) totals[blocks[j].tensor] += sums[j];
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("selected_square_sums", TORCH_BOX(&selected_square_sums_cpu)); }

}  // namespace
}  // namespace taskarith
