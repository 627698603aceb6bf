#include "ops/masked_wgrad_.h"

#include "math/outer_dots.h"

namespace taskarith {
namespace {

constexpr int64_t kDepth = 256;  // tokens summed in registers: a panel of x fits the first cache
// A row with a larger part of its entries selected is computed whole, tile by tile: a dot product costs four times as
// much for each entry.
constexpr double kDenseRow = 0.25;

struct Selection {
  const uint8_t* mask;
  int64_t columns, bytes;
  const int64_t* row_starts;
  float* values;

  uint64_t bits(int64_t row, int64_t begin, int64_t end) const {
    return bits_at(mask, bytes, row * columns + begin, end - begin);
  }
};

// Some rows of the weight, ascending, and how far into its selected entries each of them is.
class SelectedRows {
 public:
  SelectedRows(const Selection& selection, const std::vector<int64_t>& rows) : selection_(&selection), rows_(&rows) {}

  void restart(int64_t first, int64_t last) {
    first_ = first;
    next_.resize(last - first);
    for (int64_t i = first; i < last; ++i) next_[i - first] = selection_->row_starts[(*rows_)[i]];
  }

  uint64_t bits(int64_t i, int64_t begin, int64_t end) const {
    return selection_->bits((*rows_)[i], begin, std::min(end, selection_->columns));
  }

  float* next(int64_t i, int64_t count) {
    float* const to = selection_->values + next_[i - first_];
    next_[i - first_] += count;
    return to;
  }

  int64_t size() const { return static_cast<int64_t>(rows_->size()); }

 private:
  const Selection* selection_;
  const std::vector<int64_t>* rows_;
  int64_t first_ = 0;
  std::vector<int64_t> next_;
};

// Adds the selected entries of each tile to the compact gradient.
struct ScatterTiles {
  SelectedRows rows;
  uint32_t words[16] = {};  // selected entries of the tile at hand

  void start_group(int64_t first, int64_t last) { rows.restart(first, last); }

  template <class Tile>
  bool wants(int64_t i, int64_t j) {
    uint32_t any = 0;
    for (int64_t r = 0; r < Tile::kRows; ++r) {
      words[r] = i + r < rows.size() ? static_cast<uint32_t>(rows.bits(i + r, j, j + Tile::kCols)) : 0;
      any |= words[r];
    }
    return any != 0;
  }

  template <class Tile>
  TASKARITH_INLINE void take(const Tile& tile, int64_t i, int64_t) {
    alignas(64) float entries[Tile::kRows * Tile::kCols];
    tile.for_each([&](const typename Tile::V& acc, int r, int c) __attribute__((always_inline)) {
      *reinterpret_cast<typename Tile::V*>(entries + r * Tile::kCols + c) = acc;
    });
    for (int64_t r = 0; r < Tile::kRows; ++r) {
      if (words[r] == 0) continue;
      float* to = rows.next(i + r, std::popcount(words[r]));
      if (std::popcount(words[r]) == Tile::kCols) {
        for (int64_t c = 0; c < Tile::kCols; ++c) to[c] += entries[r * Tile::kCols + c];
        continue;
      }
      for (uint32_t word = words[r]; word; word &= word - 1) *to++ += entries[r * Tile::kCols + std::countr_zero(word)];
    }
  }
};

struct ListColumns {
  SelectedRows rows;

  int64_t columns(int64_t i, int64_t begin, int64_t end, int32_t* list) const {
    constexpr int64_t kBits = 57;
    int64_t count = 0;
    for (int64_t j = begin; j < end; j += kBits)
      for (uint64_t word = rows.bits(i, j, std::min(end, j + kBits)); word; word &= word - 1)
        list[count++] = static_cast<int32_t>(j + std::countr_zero(word));
    return count;
  }

  float* next(int64_t i, int64_t count) { return rows.next(i, count); }
};

void masked_wgrad_cpu(Tensor values, Tensor x, Tensor grad_y, Tensor mask, Tensor row_starts) {
  check_masked_wgrad(values, x, grad_y, mask, row_starts);
  const TensorList in = contiguous({grad_y, x});
  const int64_t o = grad_y.size(1), k = x.size(1);
  const Selection selection{mask.const_data_ptr<uint8_t>(), k, mask.numel(), row_starts.const_data_ptr<int64_t>(),
                            static_cast<float*>(values.mutable_data_ptr())};
  std::vector<int64_t> dense, sparse;
  for (int64_t i = 0; i < o; ++i) {
    const int64_t count = selection.row_starts[i + 1] - selection.row_starts[i];
    if (count > 0) (static_cast<double>(count) > kDenseRow * static_cast<double>(k) ? dense : sparse).push_back(i);
  }
  const RowMatrix a{in[0].const_data_ptr(), in[0].scalar_type(), o}, b{in[1].const_data_ptr(), in[1].scalar_type(), k};
  OuterTiles{a, b, x.size(0), kDepth, dense.data(), static_cast<int64_t>(dense.size())}.run(
      [&] { return ScatterTiles{SelectedRows(selection, dense)}; });
  const int64_t sparse_rows = static_cast<int64_t>(sparse.size());
  OuterDots{a, b, x.size(0), sparse_rows == o ? nullptr : sparse.data(), sparse_rows}.run(
      [&](int64_t first, int64_t last) {
        ListColumns list{SelectedRows(selection, sparse)};
        list.rows.restart(first, last);
        return list;
      });
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("masked_wgrad_", TORCH_BOX(&masked_wgrad_cpu)); }

}  // namespace
}  // namespace taskarith
