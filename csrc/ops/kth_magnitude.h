// kth_magnitude: the exact k-th largest |finetuned - base| of every segment and task, and where its ties end.
#pragma once

#include "math/ties_segments.h"
#include "utils/check.h"

namespace taskarith {

inline Scope parse_scope(const char* op, const std::string& scope) {
  STD_TORCH_CHECK(scope == "global" || scope == "tensor" || scope == "row", op, ": unknown scope ", scope);
  return scope == "global" ? Scope::kGlobal : scope == "tensor" ? Scope::kTensor : Scope::kRow;
}

inline Segments make_segments(const char* op, const TensorList& base, const std::string& scope) {
  std::vector<int64_t> numels, row_sizes;
  for (const Tensor& b : base) {
    numels.push_back(b.numel());
    row_sizes.push_back(b.dim() > 0 ? b.size(b.dim() - 1) : 1);
  }
  return Segments(parse_scope(op, scope), std::move(numels), std::move(row_sizes));
}

// Returns the number of tasks T. k has one entry (global) or one for each tensor, and may be 0 (keep nothing).
inline int64_t check_kth_magnitude(const TensorList& base, const TensorList& finetuned, const std::vector<int64_t>& k,
                                   const Segments& segments) {
  const int64_t tasks = check_task_lists("kth_magnitude", base, finetuned);
  const size_t expected = segments.scope() == Scope::kGlobal ? 1 : base.size();
  STD_TORCH_CHECK(k.size() == expected, "kth_magnitude: k must have ", expected, " entries, got ", k.size());
  for (size_t i = 0; i < k.size(); ++i) {
    const int64_t size = base.empty() ? 0 : segments.segment_size(static_cast<int64_t>(i));
    STD_TORCH_CHECK(k[i] >= 0 && k[i] <= size, "kth_magnitude: k[", i, "] must be in [0, ", size, "], got ", k[i]);
  }
  return tasks;
}

}  // namespace taskarith
