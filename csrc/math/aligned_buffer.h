// Scratch memory of a kernel: grows, never shrinks, starts on a cache line.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "utils/huge_pages.h"

namespace taskarith {

template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { std::free(data_); }

  // Room for `size` values; what was there is lost when it grows.
  T* reserve(int64_t size) {
    if (size > capacity_) {
      std::free(data_);
      capacity_ = 0;
      const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      advise_huge_pages(data_, static_cast<int64_t>(bytes));
      capacity_ = size;
    }
    return data_;
  }

  T* reserve_zeros(int64_t size) {
    return static_cast<T*>(std::memset(reserve(size), 0, static_cast<size_t>(size) * sizeof(T)));
  }

 private:
  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace taskarith
