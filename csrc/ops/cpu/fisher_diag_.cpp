#include "ops/fisher_diag_.h"

#include "math/outer_tiles.h"

namespace taskarith {
namespace {

// Adds the scaled squares of a sample's gradient tile to the Fisher diagonal.
struct AddSquares {
  float* fisher;  // [m, n]
  int64_t m, n;
  float scale;

  void start_group(int64_t, int64_t) {}
  template <class Tile>
  TASKARITH_INLINE bool wants(int64_t, int64_t) const {
    return true;
  }
  template <class Tile>
  TASKARITH_INLINE void take(const Tile& tile, int64_t i, int64_t j) const {
    using V = typename Tile::V;
    using Unaligned = typename Tile::Unaligned;
    if (i + Tile::kRows <= m && j + Tile::kCols <= n) {
      tile.for_each([&](const V& acc, int r, int c) __attribute__((always_inline)) {
        Unaligned* const to = reinterpret_cast<Unaligned*>(fisher + (i + r) * n + j + c);
        *to += acc * acc * scale;
      });
      return;
    }
    alignas(64) float edge[Tile::kRows * Tile::kCols];
    tile.for_each([&](const V& acc, int r, int c)
                      __attribute__((always_inline)) { *reinterpret_cast<V*>(edge + r * Tile::kCols + c) = acc; });
    for (int64_t r = 0; r < std::min<int64_t>(Tile::kRows, m - i); ++r)
      for (int64_t c = 0; c < std::min<int64_t>(Tile::kCols, n - j); ++c) {
        const float gradient = edge[r * Tile::kCols + c];
        fisher[(i + r) * n + j + c] += gradient * gradient * scale;
      }
  }
};

void fisher_diag_cpu(Tensor fisher, Tensor x, Tensor grad_y, double scale) {
  check_fisher_diag(fisher, x, grad_y);
  const TensorList in = contiguous({grad_y, x});
  const int64_t tokens = x.size(1), o = fisher.size(0), k = fisher.size(1);
  const AddSquares add{static_cast<float*>(fisher.mutable_data_ptr()), o, k, static_cast<float>(scale)};
  const OuterTiles tiles{{in[0].const_data_ptr(), in[0].scalar_type(), o},
                         {in[1].const_data_ptr(), in[1].scalar_type(), k},
                         x.size(0) * tokens,
                         tokens,
                         nullptr,
                         o};
  tiles.run([&] { return add; });
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("fisher_diag_", TORCH_BOX(&fisher_diag_cpu)); }

}  // namespace
}  // namespace taskarith
