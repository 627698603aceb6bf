// Which entries of a tensor an operator works on.
//
// A tensor is cut into blocks of 65,536 entries, so that a position in a block takes 16 bits. `items` holds, block by
// block and in ascending order, either positions [count] or runs [R, 2] of (first position, selected entries of the
// block before it); offsets [blocks + 1, 2] counts the selected entries and the items before each block. Both empty:
// every entry. Values that exist for selected entries only are "compact": [count], in the same order.
#pragma once

#include <algorithm>

#include "utils/host_memory.h"

namespace taskarith {

constexpr int64_t kSelectionBlock = 65536;  // fixed by the format

struct Selection {
  const uint16_t* items;
  const int64_t* offsets;
  bool all, runs;
  int64_t numel;
  int64_t count;
  bool counted;  // false for runs in a GPU's memory, until a compact tensor tells: they are no more than `count`

  int64_t blocks() const { return (numel + kSelectionBlock - 1) / kSelectionBlock; }

  // Whether a tensor of `size` entries holds what is selected.
  bool is_compact(int64_t size) {
    if (!counted && size <= numel) count = size, counted = true;
    return size == count;
  }
};

inline Selection every_entry(int64_t numel) { return {nullptr, nullptr, true, false, numel, numel, true}; }

// One past the last entry of item i of a block, counted as the items' second numbers are.
inline int64_t end_of_run(const Selection& x, int64_t block, int64_t i) {
  const int64_t* o = x.offsets + 2 * block;
  return i + 1 < o[3] ? x.items[2 * (i + 1) + 1] : o[2] - o[0];
}

// Every position that a kernel can reach lies in the tensor. A full block holds every 16-bit position.
inline bool fits(const Selection& x, int64_t size) {
  const int64_t last = x.blocks();
  if (x.offsets[0] != 0 || x.offsets[1] != 0 || x.offsets[2 * last + 1] != size) return false;
  for (int64_t b = 0; b < last; ++b) {
    const int64_t* o = x.offsets + 2 * b;
    if (o[0] > o[2] || o[1] > o[3] || o[3] > size) return false;
    if (x.runs ? (o[0] == o[2]) != (o[1] == o[3]) : o[0] != o[1] || o[2] != o[3]) return false;
    const int64_t limit = std::min(kSelectionBlock, x.numel - b * kSelectionBlock);
    if (x.runs)
      for (int64_t i = o[1], begin = 0; i < o[3]; ++i) {
        const int64_t end = end_of_run(x, b, i);
        if (x.items[2 * i + 1] != begin || end <= begin || x.items[2 * i] + end - begin > limit) return false;
        begin = end;
      }
    else if (limit < kSelectionBlock)
      for (int64_t i = o[0]; i < o[2]; ++i)
        if (x.items[i] >= limit) return false;
  }
  return true;
}

// What is in a GPU's memory is not read here: nothing may wait for the device.
inline Selection check_selection(const char* op, const Tensor& items, const Tensor& offsets, int64_t numel) {
  STD_TORCH_CHECK(items.scalar_type() == ScalarType::Short && offsets.scalar_type() == ScalarType::Long &&
                      items.is_contiguous() && offsets.is_contiguous() && items.is_cpu() == offsets.is_cpu(),
                  op, ": items must be contiguous int16, offsets contiguous int64");
  Selection x{static_cast<const uint16_t*>(items.const_data_ptr()),
              offsets.const_data_ptr<int64_t>(),
              offsets.numel() == 0,
              items.dim() == 2,
              numel,
              numel,
              true};
  if (x.all) return x;
  const int64_t size = items.numel() / (x.runs ? 2 : 1);
  STD_TORCH_CHECK(offsets.numel() == 2 * (x.blocks() + 1) && (!x.runs || items.size(1) == 2), op,
                  ": offsets must have shape [blocks + 1, 2], items [count] or [R, 2]");
  x.counted = !x.runs;
  if (x.counted) x.count = size;
  if (!readable(items)) return x;
  x.counted = true;
  x.count = x.offsets[2 * x.blocks()];
  STD_TORCH_CHECK(fits(x, size), op, ": a selection does not fit its tensor of ", numel, " entries");
  return x;
}

}  // namespace taskarith
