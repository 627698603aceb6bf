// Matrix products on one thread, for symmetric and tall, thin shapes: C (+)= alpha A B, or its upper triangle only.
//
// Both operands are packed block by block into the order in which the register tile reads them; an A whose rows are
// contiguous is read in place. The order of additions depends on the shapes alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "math/aligned_buffer.h"
#include "math/register_tile.h"

namespace taskarith {

template <class T>
struct MatrixView {  // element (i, j) is data[i * row_stride + j * col_stride]
  const T* data;
  int64_t row_stride, col_stride;

  TASKARITH_INLINE const T* at(int64_t i, int64_t j) const { return data + i * row_stride + j * col_stride; }
  MatrixView transposed() const { return {data, col_stride, row_stride}; }
};

template <class T>
struct GemmScratch {
  AlignedBuffer<T> a, b;
};

namespace gemm_detail {

// panel[k][w] = x[first + w, k], zero beyond `count` rows: kWidth rows side by side, one column after another.
template <int kWidth, class T, class S>
TASKARITH_INLINE void pack_panel(MatrixView<S> x, int64_t count, int64_t depth, T* __restrict panel) {
  if (count < kWidth) std::fill(panel, panel + depth * kWidth, T(0));
  if (x.row_stride == 1 && count == kWidth) {
    for (int64_t k = 0; k < depth; ++k) {
      const S* __restrict from = x.data + k * x.col_stride;
      for (int w = 0; w < kWidth; ++w) panel[k * kWidth + w] = static_cast<T>(from[w]);
    }
  } else if (count == kWidth) {
    for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 4
      for (int w = 0; w < kWidth; ++w)
        panel[k * kWidth + w] = static_cast<T>(x.data[w * x.row_stride + k * x.col_stride]);
  } else {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t w = 0; w < count; ++w) panel[k * kWidth + w] = static_cast<T>(*x.at(w, k));
  }
}

template <int kWidth, class T, class S>
TASKARITH_INLINE void pack(MatrixView<S> x, int64_t rows, int64_t depth, T* out) {
  for (int64_t i = 0; i < rows; i += kWidth)
    pack_panel<kWidth>(MatrixView<S>{x.at(i, 0), x.row_stride, x.col_stride}, std::min<int64_t>(kWidth, rows - i),
                       depth, out + i * depth);
}

template <class T>
struct Tile {
  T* c;
  int64_t ldc, rows, cols;
  T alpha;
  bool add;
};

template <class T, class Isa>
TASKARITH_INLINE void multiply_tile(int64_t depth, const T* __restrict a, int64_t a_row, int64_t a_col,
                                    const T* __restrict b, const Tile<T>& tile) {
  using Registers = RegisterTile<T, Isa>;
  using V = typename Registers::V;
  using Unaligned = typename Registers::Unaligned;
  constexpr int kRows = Registers::kRows, kCols = Registers::kCols;
  Registers registers;
  registers.multiply(depth, a, a_row, a_col, b);
  if (tile.rows >= kRows && tile.cols >= kCols) {
    registers.for_each([&](const V& acc, int r, int j) __attribute__((always_inline)) {
      Unaligned* c = reinterpret_cast<Unaligned*>(tile.c + r * tile.ldc + j);
      V v = acc * tile.alpha;
      if (tile.add) v += *c;
      *c = v;
    });
    return;
  }
  alignas(64) T edge[kRows * kCols];
  registers.for_each([&](const V& acc, int r, int j) __attribute__((always_inline)) {
    *reinterpret_cast<V*>(edge + r * kCols + j) = acc * tile.alpha;
  });
  for (int64_t r = 0; r < std::min<int64_t>(kRows, tile.rows); ++r)
    for (int64_t j = 0; j < std::min<int64_t>(kCols, tile.cols); ++j) {
      T* c = tile.c + r * tile.ldc + j;
      *c = tile.add ? *c + edge[r * kCols + j] : edge[r * kCols + j];
    }
}

}  // namespace gemm_detail

// C[m, n] (+)= alpha A[m, k] B[k, n]. With `upper` only tiles that meet the upper triangle are computed, whole: what
// lies below the diagonal is then unspecified.
template <class T, class SA = T, class SB = T>
struct Gemm {
  int64_t m, n, k;
  MatrixView<SA> a;
  MatrixView<SB> b;
  T* c;
  int64_t ldc;
  T alpha;
  bool add, upper;
  GemmScratch<T>* scratch;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    constexpr int kRows = Isa::kRows, kCols = 2 * Isa::kBytes / static_cast<int>(sizeof(T));
    constexpr int64_t kDepth = 1024 / static_cast<int64_t>(sizeof(T));  // a block of B's columns fits the first cache
    const bool direct = std::is_same_v<SA, T> && a.col_stride == 1;
    T* const packed_a = scratch->a.reserve((direct ? kRows : round_up(m, kRows)) * kDepth);
    T* const packed_b = scratch->b.reserve(round_up(n, kCols) * kDepth);
    for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
      const int64_t depth = std::min(kDepth, k - k0);
      gemm_detail::pack<kCols>(MatrixView<SB>{b.at(k0, 0), b.col_stride, b.row_stride}, n, depth, packed_b);
      const MatrixView<SA> block{a.at(0, k0), a.row_stride, a.col_stride};
      const int64_t whole = m / kRows * kRows;
      if (!direct)
        gemm_detail::pack<kRows>(block, m, depth, packed_a);
      else if (whole < m)
        gemm_detail::pack<kRows>(MatrixView<SA>{block.at(whole, 0), a.row_stride, a.col_stride}, m - whole, depth,
                                 packed_a);
      auto tile = [&](int64_t i, int64_t j) __attribute__((always_inline)) {
        const gemm_detail::Tile<T> out{c + i * ldc + j, ldc, m - i, n - j, alpha, add || k0 > 0};
        const bool in_place = direct && i < whole;
        const T* from = in_place ? reinterpret_cast<const T*>(block.at(i, 0)) : packed_a + (direct ? 0 : i * depth);
        gemm_detail::multiply_tile<T, Isa>(depth, from, in_place ? a.row_stride : 1, in_place ? 1 : kRows,
                                           packed_b + j * depth, out);
      };
      if (n <= 4 * kCols) {  // thin: every row block of A is read once
        for (int64_t i = 0; i < m; i += kRows)
          for (int64_t j = upper ? i / kCols * kCols : 0; j < n; j += kCols) tile(i, j);
      } else {
        for (int64_t j = 0; j < n; j += kCols)
          for (int64_t i = 0; i < (upper ? std::min(m, j + kCols) : m); i += kRows) tile(i, j);
      }
    }
  }
};

template <class T, class SA, class SB>
void gemm(int64_t m, int64_t n, int64_t k, MatrixView<SA> a, MatrixView<SB> b, T* c, int64_t ldc,
          GemmScratch<T>& scratch, T alpha = 1, bool add = false, bool upper = false) {
  if (m > 0 && n > 0) run_best(Gemm<T, SA, SB>{m, n, k, a, b, c, ldc, alpha, add, upper, &scratch});
}

}  // namespace taskarith
