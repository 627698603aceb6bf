// The innermost loop of every matrix product: a tile of C that stays in the vector registers while the depth runs.
#pragma once

#include <cstdint>

#include "math/simd_vector.h"

namespace taskarith {

template <class T, class Isa>
struct RegisterTile {
  using V = typename Vector<T, Isa::kBytes>::Type;
  using Unaligned = typename Vector<T, Isa::kBytes>::Unaligned;
  static constexpr int kRows = Isa::kRows, kLanes = Vector<T, Isa::kBytes>::kLanes, kCols = 2 * kLanes;

  V acc[kRows][2] = {};

  // acc[r, :] += sum_k a[r * a_row + k * a_col] * b[k, :], with b packed in rows of kCols.
  TASKARITH_INLINE void multiply(int64_t depth, const T* __restrict a, int64_t a_row, int64_t a_col,
                                 const T* __restrict b) {
    for (int64_t k = 0; k < depth; ++k) {
      const V b0 = *reinterpret_cast<const V*>(b + k * kCols), b1 = *reinterpret_cast<const V*>(b + k * kCols + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const T x = a[r * a_row + k * a_col];
        acc[r][0] += x * b0;
        acc[r][1] += x * b1;
      }
    }
  }

  // f(vector, r, first column) for the parts of the tile, in order.
  template <class F>
  TASKARITH_INLINE void for_each(const F& f) const {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) f(acc[r][h], r, h * kLanes);
  }
};

}  // namespace taskarith
