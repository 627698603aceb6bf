// Where a threshold holds: over all tensors in order (global), within a tensor, or within a row (last dimension).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace taskarith {

enum class Scope { kGlobal, kTensor, kRow };

struct Place {
  int64_t segment;   // row of the [S, T] tables of thresholds
  int64_t position;  // of the element, in its segment
  int64_t left;      // elements of this tensor from here to the end of the segment
};

class Segments {
 public:
  // numels and row_sizes [L]: elements, and elements of the last dimension (1 for a 0-d tensor).
  Segments(Scope scope, std::vector<int64_t> numels, std::vector<int64_t> row_sizes)
      : scope_(scope), numels_(std::move(numels)), row_sizes_(std::move(row_sizes)) {
    for (size_t i = 0; i < numels_.size(); ++i) {
      first_.push_back(scope == Scope::kGlobal ? numel_ : count_);
      count_ += scope == Scope::kRow ? (numels_[i] ? numels_[i] / row_sizes_[i] : 0) : 1;
      numel_ += numels_[i];
    }
    if (scope == Scope::kGlobal) count_ = 1;
  }

  Scope scope() const { return scope_; }
  int64_t count() const { return count_; }  // S
  int64_t numel() const { return numel_; }
  const std::vector<int64_t>& numels() const { return numels_; }
  int64_t segment_size(int64_t tensor) const {
    return scope_ == Scope::kGlobal ? numel_ : scope_ == Scope::kTensor ? numels_[tensor] : row_sizes_[tensor];
  }

  Place at(int64_t tensor, int64_t element) const {
    const int64_t left = numels_[tensor] - element;
    if (scope_ == Scope::kGlobal) return {0, first_[tensor] + element, left};
    if (scope_ == Scope::kTensor) return {first_[tensor], element, left};
    const int64_t row = element / row_sizes_[tensor], column = element % row_sizes_[tensor];
    return {first_[tensor] + row, column, row_sizes_[tensor] - column};
  }

 private:
  Scope scope_;
  std::vector<int64_t> numels_, row_sizes_;
  std::vector<int64_t> first_;  // global: elements before the tensor; else: segments before it
  int64_t count_ = 0, numel_ = 0;
};

}  // namespace taskarith
