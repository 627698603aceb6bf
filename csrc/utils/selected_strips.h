// The selected entries of a tensor strip by strip on the CPU: gather and scatter.
#pragma once

#include <algorithm>

#include "utils/selection.h"
#include "utils/simd.h"

namespace taskarith {

constexpr int64_t kSelectionStrip = 1024;  // entries at once
constexpr int64_t kGatherStrip = 128;      // scattered ones: their cache lines stay in the first level
constexpr int64_t kCloseStrip = 32;        // those whose cache lines are read in order first
constexpr int64_t kDenseStrip = 64;        // those that lie in nearly every cache line

// Up to kSelectionStrip selected entries of one block: element `begin` + i, or + index[i] where there is an index.
struct Strip {
  int64_t begin;
  const uint16_t* index;
  int64_t position;  // of the first one among all selected entries
  int64_t n;
  bool close = false;  // whether read_lines pays
};

template <class F>
void for_contiguous_strips(int64_t begin, int64_t position, int64_t length, const F& f) {
  for (int64_t i = 0; i < length; i += kSelectionStrip)
    f(Strip{begin + i, nullptr, position + i, std::min(kSelectionStrip, length - i)});
}

// The next of `left` scattered entries. Short strips keep the streams of several tensors in step. Where many cache
// lines, but not nearly all, hold an entry, a gather has gaps that hide the stream from the processor, which then does
// not read ahead. Bounds and lengths are measured: at one entry in ten, a step takes 0.8 of the time of long strips
// with gaps.
inline Strip scattered_strip(int64_t begin, const uint16_t* index, int64_t position, int64_t left) {
  const int64_t n = std::min(kDenseStrip, left), stretch = index[n - 1] - index[0];
  if (stretch <= 7 * n) return {begin, index, position, n};
  if (stretch <= 40 * n) return {begin, index, position, std::min(kCloseStrip, left), true};
  return {begin, index, position, std::min(kGatherStrip, left)};
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
      const int64_t end = from[0] + end_of_run(x, block, i);
      for_contiguous_strips(begin + x.items[2 * i], position, end - position, f);
      position = end;
    }
    return;
  }
  while (position < to[0]) {
    const Strip s = scattered_strip(begin, x.items + position, position, to[0] - position);
    f(s);
    position += s.n;
  }
}

struct StripBuffer {
  alignas(64) float values[kSelectionStrip];
  alignas(64) uint16_t raw[kSelectionStrip];
};

namespace {

// Every cache line from the first to the last entry of a close strip, in order.
inline void read_lines(const void* data, ScalarType type, const Strip& s) {
  if (!s.close) return;
  const int64_t size = type == ScalarType::Float ? 4 : 2;
  const char* block = static_cast<const char*>(data) + s.begin * size;
  const volatile char *x = block + s.index[0] * size, *end = block + s.index[s.n - 1] * size;
  for (; x < end; x += 64) static_cast<void>(*x);
}

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
