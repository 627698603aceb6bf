// The largest eigenvalues of a symmetric tridiagonal matrix, by bisection, and their vectors, by inverse iteration.
//
// Everything is float64 whatever the matrix was reduced in: it is a small part of the work. Eigenvalues closer than
// `window` times the norm share a Gram-Schmidt, as in LAPACK's stein; the start vectors are fixed pseudo-random ones.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "math/tridiagonal_reduction.h"

namespace taskarith {

struct TridiagonalMatrix {
  int64_t n;
  const double *d, *e;  // [n], [n - 1]

  double norm() const {
    double result = 0;
    for (int64_t i = 0; i < n; ++i)
      result = std::max(result, std::abs(d[i]) + (i ? std::abs(e[i - 1]) : 0) + (i + 1 < n ? std::abs(e[i]) : 0));
    return result;
  }
};

namespace tridiagonal_detail {

constexpr int kGroup = 32;  // eigenvalues bisected side by side: the divisions of a Sturm sequence are one long chain

// below[l] = number of eigenvalues smaller than shift[l].
struct CountBelow {
  const double *d, *e_squared;
  int64_t n;
  double smallest_pivot;
  const double* shift;
  double* below;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    using V = typename Vector<double, Isa::kBytes>::Type;
    constexpr int kLanes = Vector<double, Isa::kBytes>::kLanes, kVectors = kGroup / kLanes,
                  kStep = std::min(kVectors, 4);
    for (int s = 0; s < kVectors; s += kStep) {
      V q[kStep], x[kStep], count[kStep];
      const V tiny = V{} - smallest_pivot, zero = V{}, one = V{} + 1.0;
      for (int v = 0; v < kStep; ++v) {
        x[v] = *reinterpret_cast<const V*>(shift + (s + v) * kLanes);
        q[v] = one;
        count[v] = zero;
      }
      for (int64_t i = 0; i < n; ++i) {
        const double e2 = i ? e_squared[i - 1] : 0.0;
#pragma GCC unroll 4
        for (int v = 0; v < kStep; ++v) {
          q[v] = (d[i] - x[v]) - e2 / q[v];
          q[v] = (q[v] <= -tiny && q[v] >= tiny) ? tiny : q[v];
          count[v] += q[v] < zero ? one : zero;
        }
      }
      for (int v = 0; v < kStep; ++v) *reinterpret_cast<V*>(below + (s + v) * kLanes) = count[v];
    }
  }
};

constexpr int kBatch = 8;  // vectors solved side by side

// Solves (T - shift_l) x_l = b_l for kBatch right sides, x [n, kBatch] in place, by elimination with partial pivoting.
struct SolveShifted {
  const double *d, *e;
  int64_t n;
  double smallest_pivot;
  const double* shift;
  double* factors;  // [n, 5, kBatch]: 1/u0, u1, u2, l, swapped
  bool factorize;
  double* x;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    for (int s = 0; s < kBatch; s += Vector<double, Isa::kBytes>::kLanes) {
      if (factorize) factor<Isa>(s);
      solve<Isa>(s);
    }
  }

  template <class Isa>
  TASKARITH_INLINE void factor(int s) const {
    using V = typename Vector<double, Isa::kBytes>::Type;
    const V lambda = *reinterpret_cast<const V*>(shift + s), zero = V{}, one = V{} + 1.0, tiny = V{} + smallest_pivot;
    V diagonal = d[0] - lambda, upper = n > 1 ? V{} + e[0] : zero;
    for (int64_t i = 0; i < n; ++i) {
      V* const f = reinterpret_cast<V*>(factors + i * 5 * kBatch + s);
      constexpr int64_t kStride = kBatch / Vector<double, Isa::kBytes>::kLanes;
      const bool last = i + 1 == n;
      const V below = last ? zero : V{} + e[i], next = last ? zero : d[i + 1] - lambda;
      const V next_upper = i + 2 < n ? V{} + e[i + 1] : zero;
      const V size = diagonal < zero ? -diagonal : diagonal, below_size = below < zero ? -below : below;
      const auto swap = size < below_size;
      V u0 = swap ? below : diagonal;
      const V u1 = swap ? next : upper, u2 = swap ? next_upper : zero;
      u0 = (u0 < tiny && u0 > -tiny) ? tiny : u0;
      const V inverse = one / u0, l = (swap ? diagonal : below) * inverse;
      f[0] = inverse;
      f[kStride] = u1;
      f[2 * kStride] = u2;
      f[3 * kStride] = l;
      f[4 * kStride] = swap ? one : zero;
      diagonal = (swap ? upper : next) - l * u1;
      upper = (swap ? zero : next_upper) - l * u2;
    }
  }

  template <class Isa>
  TASKARITH_INLINE void solve(int s) const {
    using V = typename Vector<double, Isa::kBytes>::Type;
    constexpr int64_t kStride = kBatch / Vector<double, Isa::kBytes>::kLanes;
    const V zero = V{};
    auto at = [&](int64_t i) __attribute__((always_inline)) { return reinterpret_cast<V*>(x + i * kBatch + s); };
    V current = *at(0);
    for (int64_t i = 0; i < n; ++i) {
      const V* const f = reinterpret_cast<const V*>(factors + i * 5 * kBatch + s);
      const V next = i + 1 < n ? *at(i + 1) : zero;
      const auto swap = f[4 * kStride] > zero;
      const V top = swap ? next : current;
      *at(i) = top;
      current = (swap ? current : next) - f[3 * kStride] * top;
    }
    V x1 = zero, x2 = zero;
    for (int64_t i = n - 1; i >= 0; --i) {
      const V* const f = reinterpret_cast<const V*>(factors + i * 5 * kBatch + s);
      const V x0 = (*at(i) - f[2 * kStride] * x2 - f[kStride] * x1) * f[0];
      *at(i) = x0;
      x2 = x1;
      x1 = x0;
    }
  }
};

inline double pseudo_random(uint64_t& state) {  // in [-1, 1)
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(static_cast<int64_t>(state)) * 0x1p-63;
}

}  // namespace tridiagonal_detail

// values[i], i < count <= n: the largest eigenvalues, descending, to `tolerance` times the norm.
inline void largest_eigenvalues(TridiagonalMatrix t, int64_t count, double tolerance, double* values) {
  using namespace tridiagonal_detail;
  const double norm = t.norm();
  std::vector<double> e_squared(t.n);
  for (int64_t i = 0; i + 1 < t.n; ++i) e_squared[i] = t.e[i] * t.e[i];
  const double pivot = std::numeric_limits<double>::min() * std::max(1.0, norm * norm);
  for (int64_t first = 0; first < count; first += kGroup) {
    alignas(64) double low[kGroup], high[kGroup], middle[kGroup], below[kGroup];
    const double top = first ? values[first - 1] + tolerance * norm : norm * (1 + 1e-14);
    for (int l = 0; l < kGroup; ++l) low[l] = -norm * (1 + 1e-14), high[l] = top;
    for (double width = top + norm; width > tolerance * norm; width *= 0.5) {
      for (int l = 0; l < kGroup; ++l) middle[l] = 0.5 * (low[l] + high[l]);
      run_best(CountBelow{t.d, e_squared.data(), t.n, pivot, middle, below});
      for (int l = 0; l < kGroup; ++l) {  // eigenvalue i is >= x if at most n - 1 - i lie below x
        const bool up = below[l] <= static_cast<double>(t.n - 1 - std::min(first + l, count - 1));
        (up ? low : high)[l] = middle[l];
      }
    }
    for (int64_t l = 0; l < std::min<int64_t>(kGroup, count - first); ++l) values[first + l] = 0.5 * (low[l] + high[l]);
  }
}

struct TridiagonalVectorScratch {
  AlignedBuffer<double> x, factors, rows, dots;
};

// z [count, ld]: unit eigenvectors of T as rows, for the eigenvalues `values` (descending), rounded to U.
template <class U>
void eigenvectors(TridiagonalMatrix t, const double* values, int64_t count, double window, U* z, int64_t ld,
                  TridiagonalVectorScratch& scratch) {
  using namespace tridiagonal_detail;
  const int64_t n = t.n;
  const double norm = t.norm(), pivot = std::max(norm * 2e-16, std::numeric_limits<double>::min());
  double* const x = scratch.x.reserve(n * kBatch);
  double* const factors = scratch.factors.reserve(n * 5 * kBatch);
  double* const rows = scratch.rows.reserve_zeros(count * ld);
  double* const dots = scratch.dots.reserve(round_up(count, kRowAlign));
  uint64_t state = 1;
  int64_t cluster = 0;  // first vector that the current one must be made orthogonal to
  for (int64_t first = 0; first < count; first += kBatch) {
    const int64_t size = std::min<int64_t>(kBatch, count - first);
    alignas(64) double shift[kBatch];
    for (int64_t l = 0; l < kBatch; ++l) shift[l] = values[first + std::min(l, size - 1)];
    for (int64_t i = 0; i < n * kBatch; ++i) x[i] = pseudo_random(state);
    const int64_t cluster_before = cluster;
    int passes = 2;
    for (int pass = 0; pass < passes; ++pass) {
      run_best(SolveShifted{t.d, t.e, n, pivot, shift, factors, pass == 0, x});
      cluster = cluster_before;
      for (int64_t l = 0; l < size; ++l) {
        double* const row = rows + (first + l) * ld;
        double largest = 0, square = 0;
        for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i * kBatch + l]));
        for (int64_t i = 0; i < n; ++i) row[i] = x[i * kBatch + l] / largest;
        while (cluster < first + l && values[cluster] - values[first + l] > window * norm) ++cluster;
        if (cluster < first + l) passes = 3;
        for (int twice = 0; twice < 2 && cluster < first + l; ++twice) {
          run_best(DotRows<double>{rows + cluster * ld, ld, first + l - cluster, 0, n, row, dots});
          run_best(SubtractRows<double>{rows + cluster * ld, ld, first + l - cluster, 0, n, dots, row});
        }
        for (int64_t i = 0; i < n; ++i) square += row[i] * row[i];
        const double scale = 1 / std::sqrt(square);
        for (int64_t i = 0; i < n; ++i) x[i * kBatch + l] = row[i] *= scale;
      }
    }
  }
  for (int64_t i = 0; i < count * ld; ++i) z[i] = static_cast<U>(rows[i]);
}

}  // namespace taskarith
