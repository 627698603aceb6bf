#include "ops/dual_attention.h"

#include "math/exponential.h"
#include "math/gemm_tile.h"
#include "utils/parallel.h"
#include "utils/work_queue.h"

namespace taskarith {
namespace {

constexpr int64_t kStrip = 96;  // query rows of a strip, a multiple of the product's tiles of 6 and 12 rows

// One [rows, width] matrix a head, its rows contiguous.
struct Heads {
  Tensor tensor;
  const void* data = nullptr;
  int64_t strides[3] = {};

  Heads() = default;
  explicit Heads(const Tensor& t) : tensor(t) {
    if (t.size(3) > 1 && t.stride(3) != 1) tensor = torch::stable::contiguous(t);
    data = tensor.const_data_ptr();
    for (int i = 0; i < 3; ++i) strides[i] = tensor.stride(i);
  }
  explicit Heads(const MaybeTensor& t) {
    if (t.has_value()) *this = Heads(*t);
  }
  explicit operator bool() const { return data != nullptr; }

  // Rows [first, first + rows) of a head as floats: in place, or converted into `buffer`.
  MatrixView<float> rows(int64_t b, int64_t h, int64_t first, int64_t rows, AlignedBuffer<float>& buffer) const {
    const ScalarType type = tensor.scalar_type();
    const int64_t offset = b * strides[0] + h * strides[1] + first * strides[2], width = tensor.size(3);
    if (type == ScalarType::Float) return {static_cast<const float*>(data) + offset, strides[2], 1};
    float* const out = buffer.reserve(rows * width);
    for (int64_t r = 0; r < rows; ++r) load_block(data, type, offset + r * strides[2], width, out + r * width);
    return {out, width, 1};
  }
};

struct Worker {
  GemmScratch<float> gemm;
  AlignedBuffer<float> q, dq, k, dk, v, dv, p, ds, dy;
};

TASKARITH_SIMD float row_max(const float* __restrict x, int64_t n) {
  float top = -__builtin_inff();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

TASKARITH_SIMD float exponentiate(float* __restrict x, float top, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exp_float(x[i] - top);
    sum += x[i];
  }
  return sum;
}

TASKARITH_SIMD void multiply(float* __restrict x, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

TASKARITH_SIMD void add(float* __restrict x, const float* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

// The softmax of a row in place; a row that sees nothing becomes zero.
void softmax_row(float* x, int64_t n) {
  const float top = row_max(x, n);
  if (top == -__builtin_inff()) return std::fill(x, x + n, 0.0f);
  multiply(x, 1.0f / exponentiate(x, top, n), n);
}

// ds becomes p (ds - <p, ds>).
TASKARITH_SIMD void softmax_tangent(const float* __restrict p, float* __restrict ds, int64_t n) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i) dot += p[i] * ds[i];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) ds[i] = p[i] * (ds[i] - dot);
}

struct Attention {
  AttentionSizes s;
  Heads q, dq, k, dk, v, dv;
  const float* mask;
  int64_t mask_strides[4];
  bool causal;
  float scale;
  Tensor out;  // [B, H, L, e]

  // Rows [first, first + rows) of one head.
  void strip(Worker& w, int64_t b, int64_t h, int64_t first, int64_t rows) const {
    const int64_t keys = causal ? std::min(s.keys, first + rows) : s.keys;
    float *const p = w.p.reserve(rows * keys), *const ds = w.ds.reserve(rows * keys);
    const MatrixView<float> q_rows = q.rows(b, h, first, rows, w.q), k_rows = k.rows(b, h, 0, keys, w.k);
    gemm<float>(rows, keys, s.depth, q_rows, k_rows.transposed(), p, keys, w.gemm, scale);
    for (int64_t r = 0; r < rows; ++r) softmax(p + r * keys, b, h, first + r, keys);
    float* const dy = w.dy.reserve(rows * s.width);
    bool written = false;
    if (dq || dk) {
      if (dq)
        gemm<float>(rows, keys, s.depth, dq.rows(b, h, first, rows, w.dq), k_rows.transposed(), ds, keys, w.gemm,
                    scale);
      if (dk)
        gemm<float>(rows, keys, s.depth, q_rows, dk.rows(b, h, 0, keys, w.dk).transposed(), ds, keys, w.gemm, scale,
                    static_cast<bool>(dq));
      for (int64_t r = 0; r < rows; ++r) softmax_tangent(p + r * keys, ds + r * keys, keys);
      product(w, rows, keys, ds, v.rows(b, h, 0, keys, w.v), dy, false);
      written = true;
    }
    if (dv) product(w, rows, keys, p, dv.rows(b, h, 0, keys, w.dv), dy, written);
    const int64_t offset = ((b * s.heads + h) * s.queries + first) * s.width;
    store_block(dy, out.mutable_data_ptr(), out.scalar_type(), offset, rows * s.width);
  }

  void product(Worker& w, int64_t rows, int64_t keys, const float* a, MatrixView<float> x, float* y, bool add) const {
    gemm<float>(rows, s.width, keys, MatrixView<float>{a, keys, 1}, x, y, s.width, w.gemm, 1.0f, add);
  }

  void softmax(float* row, int64_t b, int64_t h, int64_t i, int64_t keys) const {
    if (mask != nullptr) {
      const float* const m = mask + b * mask_strides[0] + h * mask_strides[1] + i * mask_strides[2];
      if (mask_strides[3] == 1)
        add(row, m, keys);
      else
        for (int64_t j = 0; j < keys; ++j) row[j] += m[j * mask_strides[3]];
    }
    const int64_t seen = causal ? std::min(keys, i + 1) : keys;
    softmax_row(row, seen);
    std::fill(row + seen, row + keys, 0.0f);
  }
};

Tensor dual_attention_cpu(Tensor q, MaybeTensor dq, Tensor k, MaybeTensor dk, Tensor v, MaybeTensor dv,
                          MaybeTensor mask, bool causal, double scale) {
  const AttentionSizes s = check_dual_attention(q, dq, k, dk, v, dv, mask);
  Tensor out = torch::stable::new_empty(q, {s.batch, s.heads, s.queries, s.width});
  if (s.keys == 0 || (!dq.has_value() && !dk.has_value() && !dv.has_value())) return torch::stable::zero_(out);
  Attention a{s, Heads(q), Heads(dq), Heads(k), Heads(dk), Heads(v), Heads(dv), nullptr, {}, causal,
              static_cast<float>(scale), out};
  if (mask.has_value()) {
    a.mask = mask->const_data_ptr<float>();
    for (int i = 0; i < 4; ++i) a.mask_strides[i] = mask->stride(i);
  }
  const int64_t strips = (s.queries + kStrip - 1) / kStrip;
  run_queue<Worker>(s.batch * s.heads * strips, [&](Worker& w, int64_t item) {
    const int64_t head = item / strips, first = item % strips * kStrip;
    a.strip(w, head / s.heads, head % s.heads, first, std::min(kStrip, s.queries - first));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("dual_attention", TORCH_BOX(&dual_attention_cpu)); }

}  // namespace
}  // namespace taskarith
