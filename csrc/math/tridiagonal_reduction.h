// Householder reduction of a symmetric matrix to tridiagonal form, and the way back for some of its eigenvectors.
//
// G = Q T Q^T with Q = H_0 H_1 ..., H_c = I - tau_c v_c v_c^T, blocked by panels as in Dongarra, Sorensen and
// Hammarling (1989). Only the upper triangle is read; one pass over it gives a matrix-vector product, so the memory
// traffic of the reduction, its bottleneck, is half of that of a full product. v_c stays in row c of G, right of the
// diagonal.
#pragma once

#include <cmath>
#include <tuple>
#include <utility>

#include "math/gemm_tile.h"

namespace taskarith {

constexpr int64_t kPanel = 32;     // columns reduced before the rest of the matrix is updated
constexpr int64_t kRowAlign = 16;  // leading dimensions are multiples of this, in elements

// Room between rows that keeps them apart in the caches where n is a power of two.
inline int64_t leading_dimension(int64_t n) { return round_up(n, kRowAlign) + kRowAlign; }
inline int64_t padded_rows(int64_t n) { return round_up(n, kRowAlign); }

namespace tridiagonal_detail {

template <class V>
TASKARITH_INLINE auto sum_lanes(const V& v) {
  auto total = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(total); ++i) total += v[i];
  return total;
}

// y = G[begin:, begin:] x by the upper triangle. x is zero left of `begin` and right of n, and so are G's columns
// beyond n; y left of `begin` is unspecified.
template <class T>
struct SymmetricProduct {
  const T* g;
  int64_t ld, begin, n;
  const T* x;
  T* y;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    using V = typename Vector<T, Isa::kBytes>::Type;
    constexpr int kLanes = Vector<T, Isa::kBytes>::kLanes, kRows = kLanes < 8 ? kLanes : 8;
    using I = decltype(V{} < V{});
    const int64_t end = round_up(n, kLanes);
    for (int64_t j = begin / kLanes * kLanes; j < end; j += kLanes) *reinterpret_cast<V*>(y + j) = V{};
    I lane{};
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    for (int64_t i0 = begin / kRows * kRows; i0 < n; i0 += kRows) {
      const int64_t j0 = i0 / kLanes * kLanes;
      const T* const row = g + i0 * ld;
      V acc[kRows];
      T xi[kRows];
      V xj = *reinterpret_cast<const V*>(x + j0), yj = *reinterpret_cast<V*>(y + j0);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const I diagonal = I{} + static_cast<decltype(+lane[0])>(i0 - j0 + r);
        const V v = *reinterpret_cast<const V*>(row + r * ld + j0);
        xi[r] = x[i0 + r];
        acc[r] = (V)((I)v & (lane >= diagonal)) * xj;
        yj += (V)((I)v & (lane > diagonal)) * xi[r];
      }
      *reinterpret_cast<V*>(y + j0) = yj;
      for (int64_t j = j0 + kLanes; j < end; j += kLanes) {
        xj = *reinterpret_cast<const V*>(x + j);
        yj = *reinterpret_cast<V*>(y + j);
        V other = {};
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const V v = *reinterpret_cast<const V*>(row + r * ld + j);
          acc[r] += v * xj;
          if (r % 2)
            other += v * xi[r];
          else
            yj += v * xi[r];
        }
        *reinterpret_cast<V*>(y + j) = yj + other;
      }
      for (int r = 0; r < kRows; ++r) y[i0 + r] += sum_lanes(acc[r]);
    }
  }
};

// dots[i] = rows[i] . x over [begin, end)
template <class T>
struct DotRows {
  const T* rows;
  int64_t ld, count, begin, end;
  const T* x;
  T* dots;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    using V = typename Vector<T, Isa::kBytes>::Type;
    constexpr int kLanes = Vector<T, Isa::kBytes>::kLanes;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) four<V, kLanes, 4>(i);
    for (; i < count; ++i) four<V, kLanes, 1>(i);
  }

  template <class V, int kLanes, int kRows>
  TASKARITH_INLINE void four(int64_t i) const {
    V acc[kRows] = {};
    for (int64_t j = begin / kLanes * kLanes; j < end; j += kLanes)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        acc[r] += *reinterpret_cast<const V*>(rows + (i + r) * ld + j) * *reinterpret_cast<const V*>(x + j);
    for (int r = 0; r < kRows; ++r) dots[i + r] = sum_lanes(acc[r]);
  }
};

// y -= sum_i weights[i] rows[i] over [begin, end)
template <class T>
struct SubtractRows {
  const T* rows;
  int64_t ld, count, begin, end;
  const T* weights;
  T* y;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    using V = typename Vector<T, Isa::kBytes>::Type;
    constexpr int kLanes = Vector<T, Isa::kBytes>::kLanes;
    for (int64_t i = 0; i < count; i += 8) {
      if (i + 8 <= count)
        some<V, kLanes, 8>(i);
      else
        for (int64_t r = i; r < count; ++r) some<V, kLanes, 1>(r);
    }
  }

  template <class V, int kLanes, int kRows>
  TASKARITH_INLINE void some(int64_t i) const {
    for (int64_t j = begin / kLanes * kLanes; j < end; j += kLanes) {
      V v = *reinterpret_cast<V*>(y + j);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) v -= *reinterpret_cast<const V*>(rows + (i + r) * ld + j) * weights[i + r];
      *reinterpret_cast<V*>(y + j) = v;
    }
  }
};

// x[0..length) becomes v with v[0] = 1, so that (I - tau v v^T) x = beta e_0. Returns {beta, tau}.
template <class T>
std::pair<double, double> make_reflector(T* x, int64_t length) {
  double tail = 0;
  for (int64_t i = 1; i < length; ++i) tail += static_cast<double>(x[i]) * x[i];
  const double alpha = x[0];
  x[0] = 1;
  if (tail == 0) return {alpha, 0.0};
  const double beta = -std::copysign(std::sqrt(alpha * alpha + tail), alpha);
  const T scale = static_cast<T>(1 / (alpha - beta));
  for (int64_t i = 1; i < length; ++i) x[i] *= scale;
  return {beta, (beta - alpha) / beta};
}

}  // namespace tridiagonal_detail

template <class T>
struct TridiagonalScratch {
  AlignedBuffer<T> left, right, vectors;
  GemmScratch<T> gemm;
};

// Reduces G, [padded_rows(n), ld] with ld = leading_dimension(n), columns beyond n zero; its upper triangle is read.
// Writes the diagonal d [n], the off-diagonal e [n - 1] and tau [n - 1]; G then holds the reflectors.
template <class T>
void reduce_to_tridiagonal(T* g, int64_t n, int64_t ld, double* d, double* e, double* tau,
                           TridiagonalScratch<T>& scratch) {
  using namespace tridiagonal_detail;
  T* const left = scratch.left.reserve_zeros(2 * kPanel * ld);    // rows v_0, w_0, v_1, w_1, ...
  T* const right = scratch.right.reserve_zeros(2 * kPanel * ld);  // rows w_0, v_0, w_1, v_1, ...
  T* const x = scratch.vectors.reserve_zeros(2 * ld + 2 * kPanel);
  T *const y = x + ld, *const dots = y + ld;
  for (int64_t p0 = 0; p0 < n - 1; p0 += kPanel) {
    const int64_t width = std::min(kPanel, n - 1 - p0);
    for (int64_t j = 0; j < width; ++j) {
      const int64_t c = p0 + j;
      T* const row = g + c * ld;
      for (int64_t i = 0; i < 2 * j; ++i) dots[i] = left[i * ld + c];
      run_best(SubtractRows<T>{right, ld, 2 * j, c, n, dots, row});
      d[c] = row[c];
      std::tie(e[c], tau[c]) = make_reflector(row + c + 1, n - c - 1);
      std::fill(x + p0 / kRowAlign * kRowAlign, x + c + 1, T(0));
      std::copy(row + c + 1, row + n, x + c + 1);
      run_best(SymmetricProduct<T>{g, ld, c + 1, n, x, y});
      run_best(DotRows<T>{left, ld, 2 * j, c + 1, n, x, dots});
      run_best(SubtractRows<T>{right, ld, 2 * j, c + 1, n, dots, y});
      T yx = 0;
      run_best(DotRows<T>{y, ld, 1, c + 1, n, x, &yx});
      const T t = static_cast<T>(tau[c]), half = static_cast<T>(0.5 * tau[c] * tau[c] * yx);
      T *const v0 = left + 2 * j * ld, *const w0 = v0 + ld, *const w1 = right + 2 * j * ld, *const v1 = w1 + ld;
      const int64_t from = c / kRowAlign * kRowAlign;  // what lies left of c + 1 in these lines is never used again
      std::fill(w0 + from, w0 + c + 1, T(0));
      std::fill(v0 + from, v0 + c + 1, T(0));
      std::fill(w1 + from, w1 + c + 1, T(0));
      std::fill(v1 + from, v1 + c + 1, T(0));
      for (int64_t i = c + 1; i < n; ++i) {
        v0[i] = v1[i] = x[i];
        w0[i] = w1[i] = t * y[i] - half * x[i];
      }
    }
    const int64_t rest = p0 + width;
    gemm<T>(n - rest, n - rest, 2 * width, MatrixView<T>{left + rest, 1, ld}, MatrixView<T>{right + rest, ld, 1},
            g + rest * ld + rest, ld, scratch.gemm, T(-1), true, true);
    for (int64_t c = p0; c < rest; ++c) std::fill(g + c * ld, g + c * ld + c + 1, T(0));
  }
  d[n - 1] = g[(n - 1) * ld + n - 1];
}

// Rows of z [count, ld] are eigenvectors of T; on return, of G: z <- z Q^T, by the reflectors left in g.
template <class T>
void apply_reflectors(const T* g, int64_t n, int64_t ld, const double* tau, T* z, int64_t count,
                      TridiagonalScratch<T>& scratch) {
  T* const y = scratch.vectors.reserve(2 * count * kPanel + kPanel * kPanel);
  T *const yt = y + count * kPanel, *const cross = yt + count * kPanel;
  for (int64_t p0 = (n - 2) / kPanel * kPanel; n > 1 && p0 >= 0; p0 -= kPanel) {
    const int64_t width = std::min(kPanel, n - 1 - p0), first = p0 + 1, length = n - first;
    const MatrixView<T> v{g + p0 * ld + first, ld, 1};  // [width, length]
    gemm<T>(width, width, length, v, v.transposed(), cross, kPanel, scratch.gemm);
    double t[kPanel][kPanel] = {};  // H_0 ... H_last = I - V^T t V
    for (int64_t i = 0; i < width; ++i) {
      t[i][i] = tau[p0 + i];
      for (int64_t a = 0; a < i; ++a) {
        double sum = 0;
        for (int64_t b = a; b < i; ++b) sum += t[a][b] * cross[b * kPanel + i];
        t[a][i] = -tau[p0 + i] * sum;
      }
    }
    T t_transposed[kPanel][kPanel];
    for (int64_t a = 0; a < width; ++a)
      for (int64_t b = 0; b < width; ++b) t_transposed[b][a] = static_cast<T>(t[a][b]);
    gemm<T>(count, width, length, MatrixView<T>{z + first, ld, 1}, v.transposed(), y, kPanel, scratch.gemm);
    gemm<T>(count, width, width, MatrixView<T>{y, kPanel, 1}, MatrixView<T>{&t_transposed[0][0], kPanel, 1}, yt, kPanel,
            scratch.gemm);
    gemm<T>(count, length, width, MatrixView<T>{yt, kPanel, 1}, v, z + first, ld, scratch.gemm, T(-1), true);
  }
}

}  // namespace taskarith
