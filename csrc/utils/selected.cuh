// The selected entries of a tensor on a GPU (utils/selection.h): where they lie, and their gather and scatter.
//
// Threads share out the entries by their numbers among the selected ones, so that every thread has as much to do
// however the entries are spread, and compact tensors are read and written by whole vectors.
#pragma once

#include "utils/selection.h"
#include "utils/tensor_table.cuh"

namespace taskarith {

constexpr int kSelected = 4;  // entries that a thread takes at once: 128 bits of compact float32

enum class Form : int32_t { kEvery, kPositions, kRuns };

inline Form form_of(const Selection& x) { return x.all ? Form::kEvery : x.runs ? Form::kRuns : Form::kPositions; }

// Says what the compiler cannot know of a pointer that was loaded and is not null: not shared, not local memory.
template <class T>
__device__ __forceinline__ T* in_global_memory(T* pointer) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// The last index in [low, high] whose value does not exceed x: the first one's does not, and values ascend.
template <class I, class F>
__device__ __forceinline__ I last_up_to(I low, I high, int64_t x, const F& value_of) {
  while (low < high) {
    const I middle = low + (high - low + 1) / 2;
    if (value_of(middle) <= x)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// A selection, and which of its blocks and runs hold the entries [begin, end).
struct SelectedRange {
  const uint16_t* items;
  const int64_t* offsets;
  Form form;
  int64_t begin, end;
  int first_block, last_block;
  int64_t first_run, last_run;  // where the range lies in one block

  __device__ __forceinline__ int64_t entries_before(int block) const {
    return in_global_memory(offsets)[2 * int64_t{block}];
  }
  __device__ __forceinline__ int64_t items_before(int block) const {
    return in_global_memory(offsets)[2 * int64_t{block} + 1];
  }

  __device__ __forceinline__ uint16_t item(int64_t i) const { return in_global_memory(items)[i]; }

  __device__ __forceinline__ int block_of(int64_t j) const {
    return last_up_to(first_block, last_block, j, [&](int b) { return entries_before(b); });
  }

  // Within a block; the entry is counted from the block's first.
  __device__ __forceinline__ int64_t run_of(int64_t low, int64_t high, int64_t entry) const {
    return last_up_to(low, high, entry, [&](int64_t i) { return int64_t{item(2 * i + 1)}; });
  }
};

// All threads of a block ask for the same range, so the loads of one serve all. `end` may lie behind the last entry.
__device__ __forceinline__ SelectedRange selected_range(const uint16_t* items, const int64_t* offsets, Form form,
                                                        int64_t blocks, int64_t begin, int64_t end) {
  SelectedRange x{items, offsets, form, begin, end, 0, static_cast<int>(blocks) - 1, 0, 0};
  if (form == Form::kEvery) return x;
  const int64_t count = x.entries_before(static_cast<int>(blocks));
  x.end = end < count ? end : count;
  if (x.begin >= x.end) return x;
  const int first = x.block_of(begin), last = x.block_of(x.end - 1);
  x.first_block = first;
  x.last_block = last;
  if (form == Form::kRuns && first == last) {
    const int64_t before = x.entries_before(first), low = x.items_before(first), high = x.items_before(first + 1) - 1;
    x.first_run = x.run_of(low, high, begin - before);
    x.last_run = x.run_of(low, high, x.end - 1 - before);
  }
  return x;
}

// Where entries j .. j + 3 lie in the tensor; n of them are in the range.
template <class Whole>
__device__ __forceinline__ void find_positions(const SelectedRange& x, int64_t j, int n, Whole whole,
                                               int64_t (&at)[kSelected]) {
  uint16_t items[kSelected];
  load_some<kSelected>(in_global_memory(x.items) + j, n, whole, items);
  int block = x.block_of(j);
  int64_t block_end = x.entries_before(block + 1);
#pragma unroll
  for (int k = 0; k < kSelected; ++k) {
    if (whole || k < n)
      while (j + k >= block_end) block_end = x.entries_before(++block + 1);
    at[k] = block * kSelectionBlock + items[k];
  }
}

template <class Whole>
__device__ __forceinline__ void find_in_runs(const SelectedRange& x, int64_t j, int n, Whole whole,
                                             int64_t (&at)[kSelected]) {
  int block = x.block_of(j);
  int64_t before = x.entries_before(block), next_block = x.items_before(block + 1);
  const bool narrow = x.first_block == x.last_block;
  int64_t run =
      x.run_of(narrow ? x.first_run : x.items_before(block), narrow ? x.last_run : next_block - 1, j - before);
  int64_t end, shift;  // of the run: its last entry's number and one, and how far positions are ahead of numbers
  const auto enter = [&] {
    const int64_t begin = before + x.item(2 * run + 1);
    end = run + 1 < next_block ? before + x.item(2 * run + 3) : x.entries_before(block + 1);
    shift = block * kSelectionBlock + x.item(2 * run) - begin;
  };
  enter();
#pragma unroll
  for (int k = 0; k < kSelected; ++k) {
    if ((whole || k < n) && j + k >= end) {
      if (++run >= next_block) {
        while (j + k >= x.entries_before(block + 1)) ++block;
        before = x.entries_before(block);
        next_block = x.items_before(block + 1);
      }
      enter();
    }
    at[k] = j + k + shift;
  }
}

template <class Whole>
__device__ __forceinline__ void find_entries(const SelectedRange& x, int64_t j, int n, Whole whole,
                                             int64_t (&at)[kSelected]) {
  if (x.form == Form::kPositions) {
    find_positions(x, j, n, whole, at);
  } else if (x.form == Form::kRuns) {
    find_in_runs(x, j, n, whole, at);
  } else {
#pragma unroll
    for (int k = 0; k < kSelected; ++k) at[k] = j + k;
  }
}

// Entries j .. j + 3, at their positions in `scattered` memory, else one after the other. In the storage type:
// converted when all loads are under way.
template <class T, class Whole>
__device__ __forceinline__ void load_entries(const T* data, bool scattered, int64_t j, const int64_t (&at)[kSelected],
                                             int n, Whole whole, T (&x)[kSelected]) {
  data = in_global_memory(data);
  if (!scattered) return load_some<kSelected>(data + j, n, whole, x);
#pragma unroll
  for (int k = 0; k < kSelected; ++k) x[k] = whole || k < n ? data[at[k]] : T{};
}

template <class T, class Whole>
__device__ __forceinline__ void store_entries(const T (&x)[kSelected], T* data, bool scattered, int64_t j,
                                              const int64_t (&at)[kSelected], int n, Whole whole) {
  data = in_global_memory(data);
  if (!scattered) return store_some<kSelected>(x, n, whole, data + j);
#pragma unroll
  for (int k = 0; k < kSelected; ++k)
    if (whole || k < n) data[at[k]] = x[k];
}

}  // namespace taskarith
