#include "ops/masked_wgrad_.h"

#include "math/outer_tiles.h"

namespace taskarith {
namespace {

constexpr int64_t kDepth = 256;  // tokens summed in registers: a panel of x fits the first cache

struct Selected {
  const uint8_t* mask;
  int64_t columns, bytes;
  const int64_t* row_starts;
  std::vector<int64_t> rows;  // those with a selected entry, ascending

  uint32_t bits(int64_t row, int64_t column, int64_t width) const {
    return static_cast<uint32_t>(bits_at(mask, bytes, row * columns + column, std::min(width, columns - column)));
  }
};

// Adds the selected entries of each tile to the compact gradient.
class ScatterSelected {
 public:
  ScatterSelected(const Selected& selected, float* values) : selected_(&selected), values_(values) {}

  void start_group(int64_t first, int64_t last) {
    first_ = first;
    next_.resize(last - first);
    for (int64_t i = first; i < last; ++i) next_[i - first] = selected_->row_starts[selected_->rows[i]];
  }

  template <class Tile>
  bool wants(int64_t i, int64_t j) {
    const int64_t rows = static_cast<int64_t>(selected_->rows.size());
    uint32_t any = 0;
    for (int64_t r = 0; r < Tile::kRows; ++r)
      any |= words_[r] = i + r < rows ? selected_->bits(selected_->rows[i + r], j, Tile::kCols) : 0;
    return any != 0;
  }

  template <class Tile>
  TASKARITH_INLINE void take(const Tile& tile, int64_t i, int64_t) {
    alignas(64) float entries[Tile::kRows * Tile::kCols];
    tile.for_each([&](const typename Tile::V& acc, int r, int c) __attribute__((always_inline)) {
      *reinterpret_cast<typename Tile::V*>(entries + r * Tile::kCols + c) = acc;
    });
    for (int64_t r = 0; r < Tile::kRows; ++r) {
      uint32_t word = words_[r];
      if (word == 0) continue;
      float* to = values_ + next_[i - first_ + r];
      next_[i - first_ + r] += std::popcount(word);
      for (; word; word &= word - 1) *to++ += entries[r * Tile::kCols + std::countr_zero(word)];
    }
  }

 private:
  const Selected* selected_;
  float* values_;
  int64_t first_ = 0;
  std::vector<int64_t> next_;  // where the next selected entry of each tile row goes
  uint32_t words_[16] = {};
};

void masked_wgrad_cpu(Tensor values, Tensor x, Tensor grad_y, Tensor mask, Tensor row_starts) {
  check_masked_wgrad(values, x, grad_y, mask, row_starts);
  const TensorList in = contiguous({grad_y, x});
  const int64_t o = grad_y.size(1), k = x.size(1);
  Selected selected{mask.const_data_ptr<uint8_t>(), k, mask.numel(), row_starts.const_data_ptr<int64_t>(), {}};
  for (int64_t i = 0; i < o; ++i)
    if (selected.row_starts[i + 1] > selected.row_starts[i]) selected.rows.push_back(i);
  float* const out = static_cast<float*>(values.mutable_data_ptr());
  const OuterTiles tiles{{in[0].const_data_ptr(), in[0].scalar_type(), o},
                         {in[1].const_data_ptr(), in[1].scalar_type(), k},
                         x.size(0),
                         kDepth,
                         selected.rows.data(),
                         static_cast<int64_t>(selected.rows.size())};
  tiles.run([&] { return ScatterSelected(selected, out); });
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("masked_wgrad_", TORCH_BOX(&masked_wgrad_cpu)); }

}  // namespace
}  // namespace taskarith
