// Which entries of a tensor an operator works on, and their gather and scatter.
//
// A tensor is cut into blocks of 65,536 entries, so that a position in a block takes 16 bits. `items` holds, block by
// block and in ascending order, either positions [count] or runs [R, 2] of (first position, length - 1);
// offsets [blocks + 1, 2] counts the selected entries and the items before each block. Both empty: every entry.
// Values that exist for selected entries only are "compact": [count], in the same order.
#pragma once

#include <algorithm>
#include <string>

#include "utils/check.h"
#include "utils/simd.h"

namespace taskarith {

constexpr int64_t kSelectionBlock = 65536;  // fixed by the format
constexpr int64_t kSelectionStrip = 1024;   // entries at once
constexpr int64_t kGatherStrip = 128;       // scattered ones: their cache lines stay in the first level

struct Selection {
  const uint16_t* items;
  const int64_t* offsets;
  bool all, runs;
  int64_t numel, count;

  int64_t blocks() const { return (numel + kSelectionBlock - 1) / kSelectionBlock; }
};

inline Selection every_entry(int64_t numel) { return {nullptr, nullptr, true, false, numel, numel}; }

// Up to kSelectionStrip selected entries of one block: element `begin` + i, or + index[i] where there is an index.
struct Strip {
  int64_t begin;
  const uint16_t* index;
  int64_t position;  // of the first one among all selected entries
  int64_t n;
};

// Every position that a kernel can reach lies in the tensor. A full block holds every 16-bit position.
inline Selection check_selection(const char* op, const Tensor& items, const Tensor& offsets, int64_t numel) {
  STD_TORCH_CHECK(items.scalar_type() == ScalarType::Short && offsets.scalar_type() == ScalarType::Long &&
                      items.is_contiguous() && offsets.is_contiguous(),
                  op, ": items must be contiguous int16, offsets contiguous int64");
  Selection x{static_cast<const uint16_t*>(items.const_data_ptr()),
              offsets.const_data_ptr<int64_t>(),
              offsets.numel() == 0,
              items.dim() == 2,
              numel,
              numel};
  if (x.all) return x;
  const int64_t last = x.blocks(), size = items.numel() / (x.runs ? 2 : 1);
  STD_TORCH_CHECK(offsets.numel() == 2 * (last + 1) && (!x.runs || items.size(1) == 2), op,
                  ": offsets must have shape [blocks + 1, 2], items [count] or [R, 2]");
  x.count = x.offsets[2 * last];
  bool fits = x.offsets[0] == 0 && x.offsets[1] == 0 && x.offsets[2 * last + 1] == size;
  for (int64_t b = 0; fits && b < last; ++b) {
    const int64_t* o = x.offsets + 2 * b;
    fits = o[0] <= o[2] && o[1] <= o[3] && o[3] <= size && (x.runs || o[0] == o[1]);
    const int64_t limit = std::min(kSelectionBlock, numel - b * kSelectionBlock);
    int64_t selected = o[0];
    if (x.runs)
      for (int64_t i = o[1]; fits && i < o[3]; ++i) {
        const int64_t length = x.items[2 * i + 1] + 1;
        fits = x.items[2 * i] + length <= limit;
        selected += length;
      }
    else if (limit < kSelectionBlock)
      for (int64_t i = o[0]; fits && i < o[2]; ++i) fits = x.items[i] < limit;
    fits = fits && (!x.runs || selected == o[2]);
  }
  STD_TORCH_CHECK(fits, op, ": a selection does not fit its tensor of ", numel, " entries");
  return x;
}

template <class F>
void for_contiguous_strips(int64_t begin, int64_t position, int64_t length, const F& f) {
  for (int64_t i = 0; i < length; i += kSelectionStrip)
    f(Strip{begin + i, nullptr, position + i, std::min(kSelectionStrip, length - i)});
}

// f(strip) for the selected entries of one block, in ascending order.
template <class F>
void for_selected_strips(const Selection& x, int64_t block, const F& f) {
  const int64_t begin = block * kSelectionBlock;
  if (x.all) return for_contiguous_strips(begin, begin, std::min(kSelectionBlock, x.numel - begin), f);
  const int64_t *from = x.offsets + 2 * block, *to = from + 2;
  int64_t position = from[0];
  if (x.runs) {
    for (int64_t i = from[1]; i < to[1]; ++i) {
      const int64_t length = x.items[2 * i + 1] + 1;
      for_contiguous_strips(begin + x.items[2 * i], position, length, f);
      position += length;
    }
    return;
  }
  for (; position < to[0]; position += kGatherStrip)
    f(Strip{begin, x.items + position, position, std::min(kGatherStrip, to[0] - position)});
}

struct StripBuffer {
  alignas(64) float values[kSelectionStrip];
  alignas(64) uint16_t raw[kSelectionStrip];
};

namespace {

// Plain loads: out of order, they keep more cache misses in flight than gather instructions or prefetches do. For the
// same reason no __restrict: the compiler would pack the values into vectors, and fewer loads would be under way.
template <class T>
void gather(const T* data, const Strip& s, T* out) {
  const T* block = data + s.begin;
  for (int64_t i = 0; i < s.n; ++i) out[i] = block[s.index[i]];
}

template <class T>
void scatter(const T* __restrict x, const Strip& s, T* __restrict data) {
  T* block = data + s.begin;
  for (int64_t i = 0; i < s.n; ++i) block[s.index[i]] = x[i];
}

// The strip's values as floats: in place where they are contiguous floats, else in the buffer.
inline const float* load_selected(const void* data, ScalarType type, const Strip& s, StripBuffer& buffer) {
  if (s.index == nullptr) return load_block(data, type, s.begin, s.n, buffer.values);
  if (type == ScalarType::Float) {
    gather(static_cast<const float*>(data), s, buffer.values);
    return buffer.values;
  }
  gather(static_cast<const uint16_t*>(data), s, buffer.raw);
  return load_block(buffer.raw, type, 0, s.n, buffer.values);
}

// Rounds to nearest. Nothing to do where `x` is the tensor's own memory.
inline void store_selected(const float* x, void* data, ScalarType type, const Strip& s, StripBuffer& buffer) {
  if (s.index == nullptr) {
    if (type != ScalarType::Float || x != static_cast<float*>(data) + s.begin) store_block(x, data, type, s.begin, s.n);
  } else if (type == ScalarType::Float) {
    scatter(x, s, static_cast<float*>(data));
  } else {
    store_block(x, buffer.raw, type, 0, s.n);
    scatter(buffer.raw, s, static_cast<uint16_t*>(data));
  }
}

}  // namespace
}  // namespace taskarith
