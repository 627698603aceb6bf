// The sums of outer_tiles.h at few places, one dot product each: out(i, j) = sum_n a[n, i] b[n, j].
//
// Both operands are transposed, so that a dot product runs along memory. An entry costs about four times what it costs
// in a full register tile, and nothing is spent on the entries that are not asked for.
#pragma once

#include "math/outer_tiles.h"

namespace taskarith {

namespace outer_detail {

constexpr int64_t kDotRows = 256;            // of a and b that are transposed at a time
constexpr int64_t kStrip = 16;               // of them a work item: a cache line of a transposed column
constexpr int64_t kColumnBytes = 512 << 10;  // transposed columns of b that stay in the second cache

using Four = Vector<float, 16>::Unaligned;

// to[j * stride + i] = from[i][j] for i, j < 4.
inline void transpose_four(const float* const* from, int64_t column, float* to, int64_t stride) {
  const auto row = [&](int i) { return *reinterpret_cast<const Four*>(from[i] + column); };
  const Four a = __builtin_shufflevector(row(0), row(1), 0, 4, 1, 5),
             b = __builtin_shufflevector(row(2), row(3), 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(row(0), row(1), 2, 6, 3, 7),
             d = __builtin_shufflevector(row(2), row(3), 2, 6, 3, 7);
  *reinterpret_cast<Four*>(to) = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + stride) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  *reinterpret_cast<Four*>(to + 2 * stride) = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + 3 * stride) = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// to[i * depth + s] = row s of x, column i (or chosen[i]); zero for strip rows beyond `size`.
inline void transpose_strip(const RowMatrix& x, const int64_t* chosen, int64_t columns, int64_t first, int64_t size,
                            float* __restrict to, int64_t depth, float* scratch) {
  const float* rows[kStrip];
  for (int64_t s = 0; s < kStrip; ++s) {
    float* const own = scratch + s * 2 * x.columns;
    if (s >= size)
      rows[s] = static_cast<float*>(std::memset(own, 0, columns * sizeof(float)));
    else
      rows[s] = load_row(x, first + s, chosen, columns, own);
  }
  const int64_t whole = columns / 4 * 4;
  for (int64_t i = 0; i < whole; i += 4)
    for (int64_t s = 0; s < kStrip; s += 4) transpose_four(rows + s, i, to + i * depth + s, depth);
  for (int64_t i = whole; i < columns; ++i)
    for (int64_t s = 0; s < kStrip; ++s) to[i * depth + s] = rows[s][i];
}

template <class V>
TASKARITH_INLINE float sum_of_lanes(const V& v) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  float parts[4] = {};
  for (int l = 0; l < kLanes; ++l) parts[l % 4] += v[l];
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// out[e] += sum_s x[s] * y[columns[e] * depth + s] for `count` entries.
struct Dots {
  const float *x, *y;
  int64_t depth, count;
  const int32_t* columns;
  float* out;

  template <int kEntries, class Isa>
  TASKARITH_INLINE void add(int64_t e) const {
    using V = typename Vector<float, Isa::kBytes>::Type;
    constexpr int kLanes = Vector<float, Isa::kBytes>::kLanes;
    const float* from[kEntries];
    V acc[kEntries] = {};
    for (int i = 0; i < kEntries; ++i) from[i] = y + columns[e + i] * depth;
    for (int64_t s = 0; s < depth; s += kLanes) {
      const V a = *reinterpret_cast<const V*>(x + s);
#pragma GCC unroll 4
      for (int i = 0; i < kEntries; ++i) acc[i] += a * *reinterpret_cast<const V*>(from[i] + s);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kEntries; ++i) out[e + i] += sum_of_lanes(acc[i]);
  }

  template <class Isa>
  TASKARITH_INLINE void run() const {
    int64_t e = 0;
    for (; e + 4 <= count; e += 4) add<4, Isa>(e);
    for (; e < count; ++e) add<1, Isa>(e);
  }
};

}  // namespace outer_detail

// For a [rows, m or more] and b [rows, n] as in OuterTiles. A Chooser, made by `make(first, last)` for tile rows
// [first, last) and used by one thread, is asked for the rows one after another, for each range of columns in order:
//   columns(i, begin, end, list)   writes the columns wanted of row i in [begin, end), ascending; returns their number
//   next(i, count)                 where the next `count` sums of row i are added
// Transposes at most 256 rows of the operands at a time, as floats.
struct OuterDots {
  RowMatrix a, b;
  int64_t rows;
  const int64_t* chosen;  // [m] columns of a, ascending; null: all
  int64_t m;

  template <class Make>
  void run(const Make& make) const {
    using namespace outer_detail;
    if (rows == 0 || m == 0 || b.columns == 0) return;
    const int64_t parts = (rows + kDotRows - 1) / kDotRows;
    const int64_t depth = round_up((rows + parts - 1) / parts, kStrip);
    AlignedBuffer<float> buffer_a, buffer_b;
    float* const at = buffer_a.reserve(m * depth);
    float* const bt = buffer_b.reserve(b.columns * depth);
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t step = std::clamp<int64_t>(m / (4 * threads), 8, 512);
    for (int64_t start = 0; start < rows; start += depth) {
      transpose(start, std::min(depth, rows - start), depth, at, bt);
      run_queue<char>((m + step - 1) / step,
                      [&](char&, int64_t block) { add_block(make, block * step, step, depth, at, bt); });
    }
  }

 private:
  void transpose(int64_t start, int64_t size, int64_t depth, float* at, float* bt) const {
    using namespace outer_detail;
    parallel_ranges(depth / kStrip, [&](int64_t first, int64_t last) {
      AlignedBuffer<float> buffer;
      float* const scratch = buffer.reserve(2 * kStrip * std::max(a.columns, b.columns));
      for (int64_t s = first * kStrip; s < last * kStrip; s += kStrip) {
        const int64_t n = std::clamp<int64_t>(size - s, 0, kStrip);
        transpose_strip(a, chosen, m, start + s, n, at + s, depth, scratch);
        transpose_strip(b, nullptr, b.columns, start + s, n, bt + s, depth, scratch);
      }
    });
  }

  template <class Make>
  void add_block(const Make& make, int64_t first, int64_t step, int64_t depth, const float* at, const float* bt) const {
    using namespace outer_detail;
    const int64_t last = std::min(m, first + step);
    const int64_t width = std::max<int64_t>(16, kColumnBytes / (depth * static_cast<int64_t>(sizeof(float))));
    std::vector<int32_t> list(std::min(width, b.columns));
    auto chooser = make(first, last);
    for (int64_t j = 0; j < b.columns; j += width)
      for (int64_t i = first; i < last; ++i) {
        const int64_t count = chooser.columns(i, j, std::min(b.columns, j + width), list.data());
        if (count > 0) run_best(Dots{at + i * depth, bt, depth, count, list.data(), chooser.next(i, count)});
      }
  }
};

}  // namespace taskarith
