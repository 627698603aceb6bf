#include "ops/dual_attention.h"

#include "math/exponential.h"
#include "math/gemm_tile.h"
#include "utils/parallel.h"
#include "utils/work_queue.h"

namespace taskarith {
namespace {

// Rows and columns are padded to whole tiles of the matrix product (gemm_tile.h), whatever the instruction set.
constexpr int64_t kTileRows = 12, kTileColumns = 32;
constexpr int64_t kStrip = 96;  // query rows of a strip at most

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
  AlignedBuffer<float> rows, q, k, dk, scores, y, dy;
};

// x [rows, width] times `factor` into out [padded_rows, width], zero below.
void copy_rows(MatrixView<float> x, int64_t rows, int64_t padded_rows, int64_t width, float factor, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* const from = x.at(r, 0);
    for (int64_t i = 0; i < width; ++i) out[r * width + i] = from[i] * factor;
  }
  std::fill(out + rows * width, out + padded_rows * width, 0.0f);
}

// The transpose of x [rows, width] as [width, padded_rows], zero on the right.
void transpose_rows(MatrixView<float> x, int64_t rows, int64_t padded_rows, int64_t width, float* __restrict out) {
  constexpr int64_t kBlock = 16;
  for (int64_t j = 0; j < padded_rows; j += kBlock) {
    const int64_t n = std::clamp<int64_t>(rows - j, 0, kBlock);
    for (int64_t i = 0; i < width; ++i) {
      float* const to = out + i * padded_rows + j;
      for (int64_t r = 0; r < n; ++r) to[r] = *x.at(j + r, i);
      for (int64_t r = n; r < kBlock; ++r) to[r] = 0.0f;
    }
  }
}

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

// A float [B, H, L, S], any strides, or nothing.
struct Bias {
  const float* data = nullptr;
  int64_t strides[4] = {};

  explicit Bias(const MaybeTensor& t) {
    if (!t.has_value()) return;
    data = t->const_data_ptr<float>();
    for (int i = 0; i < 4; ++i) strides[i] = t->stride(i);
  }
  explicit operator bool() const { return data != nullptr; }

  void add_to(float* row, int64_t b, int64_t h, int64_t i, int64_t keys) const {
    const float* const from = data + b * strides[0] + h * strides[1] + i * strides[2];
    if (strides[3] == 1) return add(row, from, keys);
    for (int64_t j = 0; j < keys; ++j) row[j] += from[j * strides[3]];
  }
};

struct Attention {
  AttentionSizes s;
  Heads q, dq, k, dk, v, dv;
  Bias mask, dmask;
  bool causal;
  float scale;
  bool with_value;
  Tensor value, out;  // [B, H, L, e]

  // Rows [first, first + rows) of one head. The tangents of the scores lie right below the scores, so that the products
  // with k and v serve both; products write up to a tile's rows beyond theirs, which the next one overwrites.
  void strip(Worker& w, int64_t b, int64_t h, int64_t first, int64_t rows) const {
    const int64_t keys = causal ? std::min(s.keys, first + rows) : s.keys;
    const int64_t room = 2 * rows + 2 * kTileRows, n = round_up(keys, kTileColumns);
    const bool moves = dq || dk || dmask;
    float* const p = w.scores.reserve(room * n);
    float* const ds = p + rows * n;
    multiply_by_keys(w, b, h, first, rows, keys, p);
    for (int64_t r = 0; r < rows; ++r) softmax(p + r * n, b, h, first + r, keys);
    if (!dq && !dk && dmask) std::fill(ds, ds + rows * n, 0.0f);
    for (int64_t r = 0; r < rows && moves; ++r) {
      if (dmask) dmask.add_to(ds + r * n, b, h, first + r, keys);
      softmax_tangent(p + r * n, ds + r * n, keys);
    }
    float* const y = w.y.reserve(room * s.width);
    float* const dy = y + rows * s.width;
    const MatrixView<float> values = v.rows(b, h, 0, keys, w.rows);
    const int64_t from = with_value ? 0 : rows, to = moves ? 2 * rows : rows;
    if (from < to) product(w, to - from, keys, n, p + from * n, values, y + from * s.width, false);
    if (dv) product(w, rows, keys, n, p, dv.rows(b, h, 0, keys, w.rows), dy, moves);
    const int64_t offset = ((b * s.heads + h) * s.queries + first) * s.width;
    if (with_value) store_block(y, value.mutable_data_ptr(), value.scalar_type(), offset, rows * s.width);
    store_block(dy, out.mutable_data_ptr(), out.scalar_type(), offset, rows * s.width);
  }

  // p = scale q k^T and, below it, scale (dq k^T + q dk^T).
  void multiply_by_keys(Worker& w, int64_t b, int64_t h, int64_t first, int64_t rows, int64_t keys, float* p) const {
    const int64_t room = 2 * rows + kTileRows, n = round_up(keys, kTileColumns), d = s.depth;
    float *const a = w.q.reserve(room * d), *const kt = w.k.reserve(d * n);
    copy_rows(q.rows(b, h, first, rows, w.rows), rows, dq ? rows : rows + kTileRows, d, scale, a);
    if (dq) copy_rows(dq.rows(b, h, first, rows, w.rows), rows, rows + kTileRows, d, scale, a + rows * d);
    transpose_rows(k.rows(b, h, 0, keys, w.rows), keys, n, d, kt);
    const MatrixView<float> queries{a, d, 1};
    gemm<float>(round_up(dq ? 2 * rows : rows, kTileRows), n, d, queries, MatrixView<float>{kt, n, 1}, p, n, w.gemm);
    if (!dk) return;
    float* const dkt = w.dk.reserve(d * n);
    transpose_rows(dk.rows(b, h, 0, keys, w.rows), keys, n, d, dkt);
    gemm<float>(round_up(rows, kTileRows), n, d, queries, MatrixView<float>{dkt, n, 1}, p + rows * n, n, w.gemm, 1.0f,
                static_cast<bool>(dq));
  }

  void product(Worker& w, int64_t m, int64_t keys, int64_t n, const float* a, MatrixView<float> x, float* y,
               bool add) const {
    gemm<float>(round_up(m, kTileRows), s.width, keys, MatrixView<float>{a, n, 1}, x, y, s.width, w.gemm, 1.0f, add);
  }

  void softmax(float* row, int64_t b, int64_t h, int64_t i, int64_t keys) const {
    if (mask) mask.add_to(row, b, h, i, keys);
    const int64_t seen = causal ? std::min(keys, i + 1) : keys;
    softmax_row(row, seen);
    std::fill(row + seen, row + keys, 0.0f);
  }
};

std::tuple<Tensor, Tensor> attend(const Tensor& q, const MaybeTensor& dq, const Tensor& k, const MaybeTensor& dk,
                                  const Tensor& v, const MaybeTensor& dv, const MaybeTensor& mask,
                                  const MaybeTensor& dmask, bool causal, double scale, bool with_value) {
  const AttentionSizes s = check_dual_attention(q, dq, k, dk, v, dv, mask, dmask);
  Tensor out = torch::stable::new_empty(q, {s.batch, s.heads, s.queries, s.width});
  Tensor value = with_value ? torch::stable::new_empty(q, {s.batch, s.heads, s.queries, s.width})
                            : torch::stable::new_empty(q, {0});
  if (s.keys == 0) return {torch::stable::zero_(value), torch::stable::zero_(out)};
  const Attention a{s,
                    Heads(q),
                    Heads(dq),
                    Heads(k),
                    Heads(dk),
                    Heads(v),
                    Heads(dv),
                    Bias(mask),
                    Bias(dmask),
                    causal,
                    static_cast<float>(scale),
                    with_value,
                    value,
                    out};
  const int64_t count = (s.queries + kStrip - 1) / kStrip;
  const int64_t rows = count > 0 ? round_up((s.queries + count - 1) / count, kTileRows) : 0;
  run_queue<Worker>(s.batch * s.heads * count, [&](Worker& w, int64_t item) {
    const int64_t head = item / count, first = item % count * rows;
    if (first < s.queries) a.strip(w, head / s.heads, head % s.heads, first, std::min(rows, s.queries - first));
  });
  return {value, out};
}

std::tuple<Tensor, Tensor> dual_attention_cpu(Tensor q, MaybeTensor dq, Tensor k, MaybeTensor dk, Tensor v,
                                              MaybeTensor dv, MaybeTensor mask, bool causal, double scale,
                                              bool with_value) {
  return attend(q, dq, k, dk, v, dv, mask, std::nullopt, causal, scale, with_value);
}

std::tuple<Tensor, Tensor> dual_attention_biased_cpu(Tensor q, MaybeTensor dq, Tensor k, MaybeTensor dk, Tensor v,
                                                     MaybeTensor dv, MaybeTensor mask, bool causal, double scale,
                                                     bool with_value, Tensor dmask) {
  return attend(q, dq, k, dk, v, dv, mask, dmask, causal, scale, with_value);
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) {
  m.impl("dual_attention", TORCH_BOX(&dual_attention_cpu));
  m.impl("dual_attention_biased", TORCH_BOX(&dual_attention_biased_cpu));
}

}  // namespace
}  // namespace taskarith
