// Sums of outer products, sum_n a[n, :]^T b[n, :] over groups of rows n, tile by tile: every finished register tile is
// handed to a consumer, so that what is made of it (a square, some of its entries) needs no matrix of its own.
//
// The weight gradients of dense layers have this form: a the gradient by the output, b the input, a row for each token,
// a group for each sample. Additions run through the rows of a group in order, whatever the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "math/aligned_buffer.h"
#include "math/register_tile.h"
#include "utils/convert.h"
#include "utils/work_queue.h"

namespace taskarith {

struct RowMatrix {  // [rows, columns] of a storage type, contiguous
  const void* data;
  ScalarType type;
  int64_t columns;
};

namespace outer_detail {

constexpr int64_t kPackedBytes = 8 << 20;  // of operands packed at a time, or one group

struct Shape {
  int64_t rows = 0, columns = 0;  // of the best register tile
};

struct AskShape {
  Shape* out;
  template <class Isa>
  TASKARITH_INLINE void run() const {
    *out = {RegisterTile<float, Isa>::kRows, RegisterTile<float, Isa>::kCols};
  }
};

// Row n of x as floats, or the m chosen columns of it; `scratch` has room for twice the row.
inline const float* load_row(const RowMatrix& x, int64_t n, const int64_t* chosen, int64_t m, float* scratch) {
  const float* const row = load_block(x.data, x.type, n * x.columns, x.columns, scratch);
  if (!chosen) return row;
  float* const gathered = scratch + x.columns;
  for (int64_t i = 0; i < m; ++i) gathered[i] = row[chosen[i]];
  return gathered;
}

// Packed as [group][panel][row of the group][kWidth]: panels of columns, zero beyond the last one; this is one row.
template <int kWidth>
TASKARITH_INLINE void pack_row(const float* __restrict row, int64_t columns, float* __restrict to, int64_t panel_size) {
  const int64_t whole = columns / kWidth;
  for (int64_t p = 0; p < whole; ++p)
    for (int w = 0; w < kWidth; ++w) to[p * panel_size + w] = row[p * kWidth + w];
  if (whole * kWidth == columns) return;
  for (int w = 0; w < kWidth; ++w)
    to[whole * panel_size + w] = whole * kWidth + w < columns ? row[whole * kWidth + w] : 0.0f;
}

struct PackRows {
  RowMatrix a, b;
  const int64_t* chosen;  // columns of a that are packed; null: all of them
  int64_t m, group_rows, rows, first, last;
  int64_t first_row;  // of the chunk, in a and b
  float *packed_a, *packed_b, *scratch;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    constexpr int kRows = RegisterTile<float, Isa>::kRows, kCols = RegisterTile<float, Isa>::kCols;
    for (int64_t n = first; n < last; ++n) {
      const int64_t group = n / group_rows, depth = std::min(group_rows, rows - group * group_rows);
      const int64_t s = n - group * group_rows;
      const float* row = load_row(a, first_row + n, chosen, m, scratch);
      pack_row<kRows>(row, m, packed_a + group * group_rows * round_up(m, kRows) + s * kRows, depth * kRows);
      row = load_row(b, first_row + n, nullptr, b.columns, scratch);
      pack_row<kCols>(row, b.columns, packed_b + group * group_rows * round_up(b.columns, kCols) + s * kCols,
                      depth * kCols);
    }
  }
};

// The tiles of one row panel, group after group.
template <class Consumer>
struct RowOfTiles {
  int64_t m, n, group_rows, rows, i;
  const float *packed_a, *packed_b;
  Consumer* consumer;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    using Tile = RegisterTile<float, Isa>;
    for (int64_t start = 0; start < rows; start += group_rows) {
      const int64_t depth = std::min(group_rows, rows - start);
      const float* const a = packed_a + start * round_up(m, Tile::kRows) + i * depth;
      const float* const b = packed_b + start * round_up(n, Tile::kCols);
      consumer->start_group(i, std::min<int64_t>(m, i + Tile::kRows));
      for (int64_t j = 0; j < n; j += Tile::kCols) {
        if (!consumer->template wants<Tile>(i, j)) continue;
        Tile tile;
        tile.multiply(depth, a, 1, Tile::kRows, b + j * depth);
        consumer->take(tile, i, j);
      }
    }
  }
};

}  // namespace outer_detail

// Sums over groups of `group_rows` rows (the last one may be shorter) of a [rows, m or more] and b [rows, n].
struct OuterTiles {
  RowMatrix a, b;
  int64_t rows, group_rows;
  const int64_t* chosen;  // [m] columns of a, ascending; null: all
  int64_t m;

  // A Consumer, made by `make` and used by one thread, gets a row of tiles; for each group, in order:
  //   start_group(first, last)   the tiles hold rows [first, last) of [0, m)
  //   wants<Tile>(i, j)          whether the tile whose first entry is (i, j) is to be computed, j ascending
  //   take(tile, i, j)           the finished tile; entries beyond m or n are zero
  // Packs at most 8 MiB of operands at a time, or one group, as floats.
  template <class Make>
  void run(const Make& make) const {
    using namespace outer_detail;
    if (rows == 0 || m == 0 || b.columns == 0) return;
    Shape tile;
    run_best(AskShape{&tile});
    const int64_t padded_a = round_up(m, tile.rows), padded_b = round_up(b.columns, tile.columns);
    const int64_t group_bytes = group_rows * (padded_a + padded_b) * static_cast<int64_t>(sizeof(float));
    const int64_t chunk = std::min(rows, std::max<int64_t>(1, kPackedBytes / group_bytes) * group_rows);
    AlignedBuffer<float> buffer_a, buffer_b;
    float* const packed_a = buffer_a.reserve(chunk * padded_a);
    float* const packed_b = buffer_b.reserve(chunk * padded_b);
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t size = std::min(chunk, rows - start);
      parallel_ranges(size, [&](int64_t first, int64_t last) {
        AlignedBuffer<float> scratch;
        run_best(PackRows{a, b, chosen, m, group_rows, size, first, last, start, packed_a, packed_b,
                          scratch.reserve(2 * std::max(a.columns, b.columns))});
      });
      run_queue<char>(padded_a / tile.rows, [&](char&, int64_t panel) {
        auto consumer = make();
        run_best(RowOfTiles<decltype(consumer)>{m, b.columns, group_rows, size, panel * tile.rows, packed_a, packed_b,
                                                &consumer});
      });
    }
  }
};

}  // namespace taskarith
