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

constexpr int64_t kPackedBytes = 8 << 20;  // of packed operands, or one group
constexpr int64_t kPanelsOfBlock = 8;      // row panels that share one pass over the columns

// Packed as [group][panel][row of the group][kWidth]: panels of columns side by side, zero beyond the last one.
struct Packed {
  float* data;
  int64_t group_rows;
};

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
      const float* row = load_block(a.data, a.type, (first_row + n) * a.columns, a.columns, scratch);
      if (chosen) {
        float* const gathered = scratch + a.columns;
        for (int64_t i = 0; i < m; ++i) gathered[i] = row[chosen[i]];
        row = gathered;
      }
      pack_row<kRows>(row, m, packed_a + group * group_rows * round_up(m, kRows) + s * kRows, depth * kRows);
      row = load_block(b.data, b.type, (first_row + n) * b.columns, b.columns, scratch);
      pack_row<kCols>(row, b.columns, packed_b + group * group_rows * round_up(b.columns, kCols) + s * kCols,
                      depth * kCols);
    }
  }
};

// The tiles of some row panels, group after group.
template <class Consumer>
struct BlockOfTiles {
  int64_t m, n, group_rows, rows, first, last;  // rows of tiles [first, last) of [0, m)
  const float *packed_a, *packed_b;
  Consumer* consumer;

  template <class Isa>
  TASKARITH_INLINE void run() const {
    using Tile = RegisterTile<float, Isa>;
    for (int64_t start = 0; start < rows; start += group_rows) {
      const int64_t depth = std::min(group_rows, rows - start);
      const float* const a = packed_a + start * round_up(m, Tile::kRows);
      const float* const b = packed_b + start * round_up(n, Tile::kCols);
      consumer->start_group(first, last);
      for (int64_t j = 0; j < n; j += Tile::kCols)
        for (int64_t i = first; i < last; i += Tile::kRows) {
          if (!consumer->template wants<Tile>(i, j)) continue;
          Tile tile;
          tile.multiply(depth, a + i * depth, 1, Tile::kRows, b + j * depth);
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

  // For each group, in order, each Consumer (made by `make`, used by one thread at a time) gets some rows of tiles:
  //   start_group(first, last)   the tile rows that follow are in [first, last) of [0, m)
  //   wants<Tile>(i, j)          whether the tile whose first entry is (i, j) is to be computed
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
    const int64_t panels = padded_a / tile.rows, threads = torch::stable::get_num_threads();
    const int64_t step = std::clamp<int64_t>(panels / (4 * threads), 1, kPanelsOfBlock) * tile.rows;
    for (int64_t start = 0; start < rows; start += chunk) {
      const int64_t size = std::min(chunk, rows - start);
      parallel_ranges(size, [&](int64_t first, int64_t last) {
        AlignedBuffer<float> scratch;
        run_best(PackRows{a, b, chosen, m, group_rows, size, first, last, start, packed_a, packed_b,
                          scratch.reserve(std::max(a.columns + m, b.columns))});
      });
      run_queue<char>((m + step - 1) / step, [&](char&, int64_t block) {
        auto consumer = make();
        run_best(BlockOfTiles<decltype(consumer)>{m, b.columns, group_rows, size, block * step,
                                                  std::min(m, (block + 1) * step), packed_a, packed_b, &consumer});
      });
    }
  }
};

}  // namespace taskarith
