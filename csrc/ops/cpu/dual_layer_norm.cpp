#include "ops/dual_layer_norm.h"

#include "math/aligned_buffer.h"
#include "math/layer_norm.h"
#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kRows = 16;  // rows a work item

// Absent tensors are null.
struct Row {
  const float *x, *dx, *weight, *dweight, *dbias;
  int64_t width;
  float eps;
  bool centered;
};

TASKARITH_SIMD NormMoments moments(const Row& row) {
  const float* __restrict x = row.x;
  const float* __restrict dx = row.dx;
  const int64_t n = row.width;
  const float per_width = 1.0f / static_cast<float>(n);
  NormMoments m{};
  float sum = 0, square = 0, sum_dx = 0, dot = 0;
  if (row.centered) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    m.mean = sum * per_width;
  }
  const float mean = m.mean;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  if (dx != nullptr) {
#pragma omp simd reduction(+ : sum_dx, dot)
    for (int64_t i = 0; i < n; ++i) {
      sum_dx += dx[i];
      dot += (x[i] - mean) * dx[i];
    }
    m.mean_dx = row.centered ? sum_dx * per_width : 0.0f;
  }
  finish_moments(m, square, dot, per_width, row.eps);
  return m;
}

TASKARITH_SIMD void carry_input(const Row& row, const NormMoments& moments, float* __restrict dy) {
  const float* __restrict x = row.x;
  const float* __restrict dx = row.dx;
  const float* __restrict w = row.weight;
  const NormMoments m = moments;
#pragma omp simd
  for (int64_t i = 0; i < row.width; ++i) dy[i] = carried_input(x[i], dx[i], w[i], m);
}

TASKARITH_SIMD void add_parameters(const Row& row, const NormMoments& moments, float* __restrict dy) {
  const NormMoments m = moments;
  if (row.dweight != nullptr) {
    const float* __restrict x = row.x;
    const float* __restrict dw = row.dweight;
#pragma omp simd
    for (int64_t i = 0; i < row.width; ++i) dy[i] += carried_weight(x[i], dw[i], m);
  }
  if (row.dbias != nullptr) {
    const float* __restrict db = row.dbias;
#pragma omp simd
    for (int64_t i = 0; i < row.width; ++i) dy[i] += db[i];
  }
}

// A parameter as floats; null if it is absent.
const float* parameter(const MaybeTensor& tensor, int64_t width, AlignedBuffer<float>& buffer) {
  if (!tensor.has_value()) return nullptr;
  const Tensor dense = torch::stable::contiguous(*tensor);
  float* const values = buffer.reserve(width);
  const float* const found = load_block(dense.const_data_ptr(), dense.scalar_type(), 0, width, values);
  if (found != values) std::copy(found, found + width, values);
  return values;
}

Tensor dual_layer_norm_cpu(Tensor x, MaybeTensor dx, MaybeTensor weight, MaybeTensor dweight, MaybeTensor dbias,
                           double eps, bool centered) {
  check_dual_layer_norm(x, dx, weight, dweight, dbias);
  x = torch::stable::contiguous(x);
  if (dx.has_value()) dx = torch::stable::contiguous(*dx);
  Tensor out = torch::stable::empty_like(x);
  const int64_t width = x.size(x.dim() - 1), rows = width > 0 ? x.numel() / width : 0;
  AlignedBuffer<float> buffers[3];
  const float* w = parameter(weight, width, buffers[0]);
  const float *const dw = parameter(dweight, width, buffers[1]), *const db = parameter(dbias, width, buffers[2]);
  if (w == nullptr) {
    float* const ones = buffers[0].reserve(width);
    std::fill(ones, ones + width, 1.0f);
    w = ones;
  }
  const ScalarType type = x.scalar_type();
  const void *const px = x.const_data_ptr(), *const pdx = dx.has_value() ? dx->const_data_ptr() : nullptr;
  void* const py = out.mutable_data_ptr();
  parallel_ranges((rows + kRows - 1) / kRows, [&](int64_t first, int64_t last) {
    thread_local AlignedBuffer<float> scratch;
    float* const a = scratch.reserve(3 * width);
    for (int64_t r = first * kRows; r < std::min(rows, last * kRows); ++r) {
      const float* const dx_row = pdx == nullptr ? nullptr : load_block(pdx, type, r * width, width, a + width);
      const Row row{
          load_block(px, type, r * width, width, a), dx_row, w, dw, db, width, static_cast<float>(eps), centered};
      const NormMoments m = moments(row);
      float* const dy = type == ScalarType::Float ? static_cast<float*>(py) + r * width : a + 2 * width;
      if (dx_row != nullptr)
        carry_input(row, m, dy);
      else
        std::fill(dy, dy + width, 0.0f);
      add_parameters(row, m, dy);
      if (type != ScalarType::Float) store_block(dy, py, type, r * width, width);
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("dual_layer_norm", TORCH_BOX(&dual_layer_norm_cpu)); }

}  // namespace
}  // namespace taskarith
