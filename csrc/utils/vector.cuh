// Values in storage types moved as float: W at a time by one 128-bit access, or one by one.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "utils/device.cuh"

namespace taskarith {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Whether 128-bit accesses may start at every pointer; a null pointer is no obstacle.
inline bool all_aligned(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 0;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0;
}

// A whole vector as one integer.
template <int bytes>
struct Bits;
template <>
struct Bits<16> {
  using Type = uint4;
};
template <>
struct Bits<8> {
  using Type = uint2;
};
template <>
struct Bits<4> {
  using Type = unsigned;
};
template <>
struct Bits<2> {
  using Type = unsigned short;
};

// `source` must be aligned to W elements.
template <int W, class T>
__device__ __forceinline__ void load_raw(const T* source, T (&x)[W]) {
  using Whole = typename Bits<W * sizeof(T)>::Type;
  TASKARITH_CHECK_ALIGNED(source, sizeof(Whole));
  const Whole bits = *reinterpret_cast<const Whole*>(source);
  memcpy(static_cast<void*>(x), &bits, sizeof bits);
}

// `target` must be aligned to W elements. The streaming hint fits a result that the kernel does not read again, and it
// keeps the compiler from cutting the vector into scalars.
template <int W, class T>
__device__ __forceinline__ void store_raw(const T (&x)[W], T* target) {
  using Whole = typename Bits<W * sizeof(T)>::Type;
  Whole bits;
  memcpy(&bits, x, sizeof bits);
  TASKARITH_CHECK_ALIGNED(target, sizeof(Whole));
  __stcs(reinterpret_cast<Whole*>(target), bits);
}

template <int W, class T>
__device__ __forceinline__ void load_vector(const T* source, float (&x)[W]) {
  T values[W];
  load_raw<W>(source, values);
#pragma unroll
  for (int j = 0; j < W; ++j) x[j] = to_float(values[j]);
}

template <int W, class T>
__device__ __forceinline__ void store_vector(const float (&x)[W], T* target) {
  T values[W];
#pragma unroll
  for (int j = 0; j < W; ++j) values[j] = from_float<T>(x[j]);
  store_raw<W>(values, target);
}

// A truth that the compiler knows; the standard library's cannot be asked in device code.
template <bool value>
struct Constant {
  __device__ __forceinline__ constexpr operator bool() const { return value; }
};

// The first n of W elements, the others zero. 128 bits at a time (or all, if W are fewer) if `whole`, that
// is if all exist and lie aligned, else one by one. Callers branch on `whole` once and pass it on as a constant, so
// that nothing stands between one load and the next.
template <int W, class T>
__device__ __forceinline__ void load_some(const T* source, int n, bool whole, T (&x)[W]) {
  constexpr int kPart = W * sizeof(T) < 16 ? W : 16 / sizeof(T);
  static_assert(W % kPart == 0);
  if (whole) {
#pragma unroll
    for (int p = 0; p < W; p += kPart) load_raw<kPart>(source + p, *reinterpret_cast<T(*)[kPart]>(x + p));
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j) x[j] = j < n ? source[j] : T{};
  }
}

template <int W, class T>
__device__ __forceinline__ void store_some(const T (&x)[W], int n, bool whole, T* target) {
  constexpr int kPart = W * sizeof(T) < 16 ? W : 16 / sizeof(T);
  static_assert(W % kPart == 0);
  if (whole) {
#pragma unroll
    for (int p = 0; p < W; p += kPart) store_raw<kPart>(*reinterpret_cast<const T(*)[kPart]>(x + p), target + p);
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j)
      if (j < n) target[j] = x[j];
  }
}

// The same in float.
template <int W, class T>
__device__ __forceinline__ void load_floats(const T* source, int n, bool whole, float (&x)[W]) {
  T values[W];
  load_some<W>(source, n, whole, values);
#pragma unroll
  for (int j = 0; j < W; ++j) x[j] = to_float(values[j]);
}

template <int W, class T>
__device__ __forceinline__ void store_floats(const float (&x)[W], int n, bool whole, T* target) {
  T values[W];
#pragma unroll
  for (int j = 0; j < W; ++j) values[j] = from_float<T>(x[j]);
  store_some<W>(values, n, whole, target);
}

}  // namespace taskarith
