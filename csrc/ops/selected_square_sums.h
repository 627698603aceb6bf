// selected_square_sums: the sum of the squares of the selected entries, one a tensor.
#pragma once

#include "utils/selection.h"

namespace taskarith {

// tensors[i] has numels[i] entries, or is compact.
inline std::vector<Selection> check_selected_square_sums(const TensorList& tensors, const TensorList& items,
                                                         const TensorList& offsets,
                                                         const std::vector<int64_t>& numels) {
  constexpr const char* kOp = "selected_square_sums";
  const size_t n = tensors.size();
  STD_TORCH_CHECK(items.size() == n && offsets.size() == n && numels.size() == n, kOp, ": the lists differ in length");
  std::vector<Selection> out;
  for (size_t i = 0; i < n; ++i) {
    const Selection x = check_selection(kOp, items[i], offsets[i], numels[i]);
    STD_TORCH_CHECK(is_storage_type(tensors[i].scalar_type()), kOp, ": float32, bfloat16 or float16");
    STD_TORCH_CHECK(tensors[i].numel() == x.numel || tensors[i].numel() == x.count, kOp, ": tensors[", i,
                    "] must have ", x.numel, " or ", x.count, " entries");
    out.push_back(tensors[i].numel() == x.numel ? x : every_entry(x.count));
  }
  return out;
}

}  // namespace taskarith
