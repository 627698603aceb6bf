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
    Selection x = check_selection(kOp, items[i], offsets[i], numels[i]);
    const bool dense = tensors[i].numel() == x.numel;
    STD_TORCH_CHECK(is_storage_type(tensors[i].scalar_type()), kOp, ": float32, bfloat16 or float16");
    STD_TORCH_CHECK(dense || x.is_compact(tensors[i].numel()), kOp, ": tensors[", i, "] must have ", x.numel, " or ",
                    x.count, " entries");
    out.push_back(dense ? x : every_entry(x.count));
  }
  return out;
}

}  // namespace taskarith
