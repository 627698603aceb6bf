// GCC vectors, and one body compiled for three instruction sets where the body's shape depends on the register file.
#pragma once

#include <cstdint>

#include "utils/simd.h"

#define TASKARITH_INLINE inline __attribute__((always_inline))

namespace taskarith {

template <class T, int kBytes>
struct Vector {
  typedef T Type __attribute__((vector_size(kBytes)));
  typedef T Unaligned __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
};

// Registers of an instruction set: the bytes of a vector and the rows of a matrix product's tile that fit.
struct Avx512 {
  static constexpr int kBytes = 64, kRows = 12;
};
struct Avx2 {
  static constexpr int kBytes = 32, kRows = 6;
};
struct Baseline {
  static constexpr int kBytes = 16, kRows = 6;
};

#if defined(__x86_64__) && defined(__GNUC__)
inline bool has_avx2() {
  static const bool yes = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return yes;
}

template <class F>
__attribute__((target("arch=x86-64-v4"), noinline)) void run_avx512(const F& f) {
  f.template run<Avx512>();
}
template <class F>
__attribute__((target("arch=x86-64-v3"), noinline)) void run_avx2(const F& f) {
  f.template run<Avx2>();
}
#endif

template <class F>
__attribute__((noinline)) void run_baseline(const F& f) {
  f.template run<Baseline>();
}

// f.run<Isa>() must be always_inline (TASKARITH_INLINE), and all that it calls in its inner loops too.
template <class F>
void run_best(const F& f) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (has_avx512()) return run_avx512(f);
  if (has_avx2()) return run_avx2(f);
#endif
  run_baseline(f);
}

}  // namespace taskarith
