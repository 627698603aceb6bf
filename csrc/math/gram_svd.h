// The leading singular triplets of one matrix on one thread, through the Gram matrix of its shorter side.
//
// B [M, N] is the matrix with its longer side upright. G = B^T B is reduced to tridiagonal form; the eigenvectors V of
// its k largest eigenvalues give W = B V, whose columns are the left vectors times the singular values, and
// B_k = W V^T. In float32 the Gram matrix loses the digits of singular values that are small against the largest, so
// the result must certify itself: with residuals r_i = ||B^T w_i - theta_i v_i|| of the true operator, the energy that
// V misses is at most sum_i min(r_i, r_i^2 / (theta_i - lambda_{k+1})), and half of it over the remaining energy is the
// excess over the optimal error. Where that exceeds the limit, the work is done again in float64; where a sample of the
// entries already shows a spectrum too steep for float32, it is done in float64 at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "math/tridiagonal_eigen.h"

namespace taskarith {

struct SvdResult {
  bool ok;        // false: the matrix holds a value that is not finite, or inverse iteration failed
  double excess;  // bound on ||D - D_k|| / optimum - 1; 0 where float64 was used
};

class GramSvd {
 public:
  static constexpr double kExcessLimit = 1e-5;

  // d [m, n] contiguous, 1 <= k <= min(m, n). `orthonormal`: U is wanted, not only the product.
  SvdResult decompose(const float* d, int64_t m, int64_t n, int64_t k, bool certified, bool orthonormal) {
    tall_ = m >= n;
    rows_ = std::max(m, n);
    cols_ = std::min(m, n);
    k_ = k;
    ld_ = leading_dimension(cols_);
    b_ = tall_ ? MatrixView<float>{d, n, 1} : MatrixView<float>{d, 1, n};
    double excess = 0;
    const bool single = certified && cols_ > kSmall && 2 * k < cols_ && !looks_hopeless();
    in_double_ = !(single && run_single(orthonormal, excess));
    const bool ok = !in_double_ || run_double(orthonormal);
    return {ok, in_double_ ? 0 : excess};
  }

  // left [m, k] (rows `ld_left` apart) times right [k, n] contiguous is D_k.
  void write_product(float* left, int64_t ld_left, float* right) {
    std::vector<double> scale(k_);
    for (int64_t i = 0; i < k_; ++i) scale[i] = unit_[i] ? sigma_[i] : 1;
    write(scale, left, ld_left, right);
  }

  // u [m, k], s [k], vh [k, n] contiguous; s descends, the entry of largest magnitude of each row of vh is positive.
  void write_factors(float* u, float* s, float* vh) {
    std::vector<double> scale(k_);
    for (int64_t i = 0; i < k_; ++i) scale[i] = unit_[i] ? 1 : 1 / sigma_[i];
    write(scale, u, k_, vh);
    const int64_t m = tall_ ? rows_ : cols_, n = tall_ ? cols_ : rows_;
    for (int64_t i = 0; i < k_; ++i) {
      s[i] = static_cast<float>(sigma_[order_[i]]);
      float* const row = vh + i * n;
      if (*std::max_element(row, row + n, [](float a, float b) { return std::abs(a) < std::abs(b); }) >= 0) continue;
      for (int64_t j = 0; j < n; ++j) row[j] = -row[j];
      for (int64_t j = 0; j < m; ++j) u[j * k_ + i] = -u[j * k_ + i];
    }
  }

 private:
  static constexpr int64_t kSmall = 64;  // below this side float64 costs nothing

  template <class T>
  struct Stage {
    AlignedBuffer<T> g_buffer, v_buffer, w_buffer, z_buffer;
    TridiagonalScratch<T> scratch;
    T *g, *v, *w;  // w [M, k] if tall, else [k, M]
  };

  template <class T>
  double gram(Stage<T>& stage) {
    T* const g = stage.g = stage.g_buffer.reserve(padded_rows(cols_) * ld_);
    gemm<T>(cols_, cols_, rows_, b_.transposed(), b_, g, ld_, stage.scratch.gemm, T(1), false, true);
    for (int64_t i = 0; i < padded_rows(cols_); ++i)
      std::fill(g + i * ld_ + (i < cols_ ? cols_ : 0), g + (i + 1) * ld_, T(0));
    double trace = 0;
    for (int64_t i = 0; i < cols_; ++i) trace += g[i * ld_ + i];
    return trace;
  }

  // Reduces G [n, n] and writes its k + 1 largest eigenvalues (0 for one that does not exist).
  template <class T>
  void eigenvalues(T* g, int64_t n, int64_t ld, TridiagonalScratch<T>& scratch, double tolerance) {
    d_.resize(n);
    e_.resize(n);
    tau_.resize(n);
    values_.assign(k_ + 1, 0.0);
    reduce_to_tridiagonal<T>(g, n, ld, d_.data(), e_.data(), tau_.data(), scratch);
    largest_eigenvalues({n, d_.data(), e_.data()}, std::min(k_ + 1, n), tolerance, values_.data());
  }

  template <class T>
  void vectors(Stage<T>& stage, double window) {
    T* const v = stage.v = stage.v_buffer.reserve(k_ * ld_);
    eigenvectors<T>({cols_, d_.data(), e_.data()}, values_.data(), k_, window, v, ld_, vector_scratch_);
    apply_reflectors<T>(stage.g, cols_, ld_, tau_.data(), v, k_, stage.scratch);
    T* const w = stage.w = stage.w_buffer.reserve(rows_ * k_);
    if (tall_)
      gemm<T>(rows_, k_, cols_, b_, MatrixView<T>{v, 1, ld_}, w, k_, stage.scratch.gemm);
    else
      gemm<T>(k_, rows_, cols_, MatrixView<T>{v, ld_, 1}, b_.transposed(), w, rows_, stage.scratch.gemm);
    theta_.assign(k_, 0.0);
    for (int64_t j = 0; j < rows_; ++j)
      for (int64_t i = 0; i < k_; ++i) {
        const double x = *w_view(stage).at(j, i);
        theta_[i] += x * x;
      }
  }

  template <class T>
  MatrixView<T> w_view(const Stage<T>& stage) const {  // [M, k]
    return tall_ ? MatrixView<T>{stage.w, k_, 1} : MatrixView<T>{stage.w, 1, rows_};
  }

  // Largest |cosine| between two columns of x [length, k].
  template <class T>
  double largest_cosine(Stage<T>& stage, MatrixView<T> x, int64_t length) {
    T* const c = stage.z_buffer.reserve(k_ * k_);
    gemm<T>(k_, k_, length, x.transposed(), x, c, k_, stage.scratch.gemm);
    double largest = 0;
    for (int64_t i = 0; i < k_; ++i)
      for (int64_t j = 0; j < i; ++j) {
        const double norms = std::sqrt(static_cast<double>(c[i * k_ + i]) * c[j * k_ + j]);
        const double cosine = norms > 0 ? std::abs(c[i * k_ + j]) / norms : 1;
        largest = std::max(largest, cosine);
      }
    return largest;
  }

  double expected_excess(const std::vector<double>& residual, double rest) const {
    double missed = 0;
    for (int64_t i = 0; i < k_; ++i) {
      const double gap = values_[i] - values_[k_], r = residual[i];
      missed += gap > r ? r * r / gap : r;
    }
    return 0.5 * missed / rest;
  }

  // The excess to expect of float32 for a Gram matrix with this trace and these eigenvalues `values_`, from residuals
  // as rounding makes them.
  double predicted_excess(double trace) const {
    const double rest = trace - std::accumulate(values_.begin(), values_.end() - 1, 0.0);
    if (!(rest > 1e-4 * trace)) return 1;
    return expected_excess(std::vector<double>(k_, 3e-7 * values_[0]), rest);
  }

  // Judges by evenly spaced rows and columns, a few more than k. A wrong guess costs time, not digits.
  bool looks_hopeless() {
    const int64_t size = std::min(cols_, k_ + 16), ld = leading_dimension(size);
    float* const sample = single_.z_buffer.reserve(size * size);
    double* const g = double_.g_buffer.reserve_zeros(padded_rows(size) * ld);
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j) sample[i * size + j] = *b_.at(i * rows_ / size, j * cols_ / size);
    const MatrixView<float> s{sample, size, 1};
    gemm<double>(size, size, size, s.transposed(), s, g, ld, double_.scratch.gemm, 1.0, false, true);
    double trace = 0;
    for (int64_t i = 0; i < size; ++i) trace += g[i * ld + i];
    if (!std::isfinite(trace) || trace == 0) return false;
    eigenvalues(g, size, ld, double_.scratch, 1e-9);
    return predicted_excess(trace) > 100 * kExcessLimit;
  }

  bool run_single(bool orthonormal, double& excess) {
    const double trace = gram(single_);
    if (!(trace > 1e-25 && trace < 1e30)) return false;  // squares would leave the range of float32, or not finite
    eigenvalues(single_.g, cols_, ld_, single_.scratch, 1e-8);
    if (predicted_excess(trace) > kExcessLimit) return false;
    vectors(single_, 1e-5);
    finish(theta_);
    excess = expected_excess(residuals(), trace - std::accumulate(theta_.begin(), theta_.end(), 0.0));
    return excess <= kExcessLimit && (!orthonormal || largest_cosine(single_, w_view(single_), rows_) < 1e-5);
  }

  std::vector<double> residuals() {
    float* const z = single_.z_buffer.reserve(cols_ * k_);
    gemm<float>(cols_, k_, rows_, b_.transposed(), w_view(single_), z, k_, single_.scratch.gemm);
    std::vector<double> out(k_, 0.0);
    for (int64_t j = 0; j < cols_; ++j)
      for (int64_t i = 0; i < k_; ++i) {
        const double r = z[j * k_ + i] - theta_[i] * single_.v[i * ld_ + j];
        out[i] += r * r;
      }
    for (double& r : out) r = std::sqrt(r);
    return out;
  }

  bool run_double(bool orthonormal) {
    const double trace = gram(double_);
    if (!std::isfinite(trace)) return false;
    if (trace == 0) return zero_matrix(orthonormal);
    eigenvalues(double_.g, cols_, ld_, double_.scratch, 1e-15);
    for (const double window : {1e-3, 10.0}) {  // the second: every vector orthogonal to all others by construction
      vectors(double_, window);
      const double wanted = std::accumulate(values_.begin(), values_.end() - 1, 0.0);
      const double found = std::accumulate(theta_.begin(), theta_.end(), 0.0);
      if (std::abs(wanted - found) > 1e-10 * trace) continue;
      if (largest_cosine(double_, MatrixView<double>{double_.v, 1, ld_}, cols_) > 1e-9) continue;
      finish(theta_);
      if (orthonormal && largest_cosine(double_, w_view(double_), rows_) > 1e-6) orthonormalize();
      return true;
    }
    return false;
  }

  bool zero_matrix(bool orthonormal) {
    double_.v = double_.v_buffer.reserve_zeros(k_ * ld_);
    double_.w = double_.w_buffer.reserve_zeros(rows_ * k_);
    for (int64_t i = 0; i < k_; ++i) double_.v[i * ld_ + i] = 1;
    theta_.assign(k_, 0.0);
    finish(theta_);
    if (orthonormal) orthonormalize();
    return true;
  }

  void finish(const std::vector<double>& theta) {
    sigma_.resize(k_);
    unit_.assign(k_, false);
    order_.resize(k_);
    for (int64_t i = 0; i < k_; ++i) sigma_[i] = std::sqrt(theta[i]);
    sort();
  }

  void sort() {
    std::iota(order_.begin(), order_.end(), int64_t{0});
    std::stable_sort(order_.begin(), order_.end(), [this](int64_t i, int64_t j) { return sigma_[i] > sigma_[j]; });
  }

  // Columns of W near rounding are not orthogonal: Gram-Schmidt, the strong ones first. A column that vanishes gets the
  // singular value 0 and any direction that is left.
  void orthonormalize() {
    using tridiagonal_detail::DotRows, tridiagonal_detail::SubtractRows;
    const int64_t ld = round_up(rows_, kRowAlign);
    double* const q = double_.z_buffer.reserve_zeros(k_ * ld + round_up(k_, kRowAlign));
    double* const dots = q + k_ * ld;
    double* const w = double_.w;
    const int64_t w_row = tall_ ? k_ : 1, w_col = tall_ ? 1 : rows_;
    int64_t next = 0;
    for (int64_t i = 0; i < k_; ++i) {
      double* const row = q + i * ld;
      const int64_t from = order_[i];
      auto norm_of_rest = [&] {
        for (int twice = 0; twice < 2; ++twice) {
          run_best(DotRows<double>{q, ld, i, 0, rows_, row, dots});
          run_best(SubtractRows<double>{q, ld, i, 0, rows_, dots, row});
        }
        double square = 0;
        for (int64_t j = 0; j < rows_; ++j) square += row[j] * row[j];
        return std::sqrt(square);
      };
      for (int64_t j = 0; j < rows_; ++j) row[j] = w[j * w_row + from * w_col];
      double norm = norm_of_rest();
      sigma_[from] = norm > 1e-14 * sigma_[order_[0]] ? norm : 0;
      const double enough = 0.5 * std::sqrt(static_cast<double>(rows_ - i) / static_cast<double>(rows_));
      for (; sigma_[from] == 0 && norm < enough; next = (next + 1) % rows_) {
        std::fill(row, row + rows_, 0.0);
        row[next] = 1;
        norm = norm_of_rest();
      }
      for (int64_t j = 0; j < rows_; ++j) w[j * w_row + from * w_col] = row[j] /= norm;
      unit_[from] = true;
    }
    sort();
  }

  void write(const std::vector<double>& scale, float* left, int64_t ld_left, float* right) {
    in_double_ ? write(double_, scale, left, ld_left, right) : write(single_, scale, left, ld_left, right);
  }

  template <class T>
  void write(const Stage<T>& stage, const std::vector<double>& scale, float* left, int64_t ld_left, float* right) {
    for (int64_t i = 0; i < k_; ++i) {
      const int64_t from = order_[i];
      const T factor = static_cast<T>(scale[from]);
      const T* const v = stage.v + from * ld_;
      if (tall_) {
        for (int64_t j = 0; j < cols_; ++j) right[i * cols_ + j] = static_cast<float>(v[j]);
        for (int64_t j = 0; j < rows_; ++j) left[j * ld_left + i] = static_cast<float>(stage.w[j * k_ + from] * factor);
      } else {
        const T* const w = stage.w + from * rows_;
        for (int64_t j = 0; j < cols_; ++j) left[j * ld_left + i] = static_cast<float>(v[j]);
        for (int64_t j = 0; j < rows_; ++j) right[i * rows_ + j] = static_cast<float>(w[j] * factor);
      }
    }
  }

  bool tall_ = true, in_double_ = false;
  int64_t rows_ = 0, cols_ = 0, k_ = 0, ld_ = 0;
  MatrixView<float> b_{};
  Stage<float> single_;
  Stage<double> double_;
  TridiagonalVectorScratch vector_scratch_;
  std::vector<double> d_, e_, tau_, values_, theta_, sigma_;
  std::vector<int64_t> order_;  // singular values, largest first
  std::vector<char> unit_;      // the column of W is already of length 1
};

}  // namespace taskarith
