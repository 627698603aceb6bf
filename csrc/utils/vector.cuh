// Values in storage types moved as float: W at a time by one 128-bit access, or one by one.
#pragma once

#include <cstring>

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

// A whole vector as one integer.
template <int bytes>
struct Bits;
template <>
struct Bits<16> {
  using Type = uint4;
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
__device__ __forceinline__ void load_vector(const T* source, float (&x)[W]) {
  using Whole = typename Bits<W * sizeof(T)>::Type;
  TASKARITH_CHECK_ALIGNED(source, sizeof(Whole));
  const Whole bits = *reinterpret_cast<const Whole*>(source);
  T values[W];
  memcpy(static_cast<void*>(values), &bits, sizeof bits);
#pragma unroll
  for (int j = 0; j < W; ++j) x[j] = to_float(values[j]);
}

// `target` must be aligned to W elements. The streaming hint fits a result that the kernel does not read again, and it
// keeps the compiler from cutting the vector into scalars.
template <int W, class T>
__device__ __forceinline__ void store_vector(const float (&x)[W], T* target) {
  using Whole = typename Bits<W * sizeof(T)>::Type;
  T values[W];
#pragma unroll
  for (int j = 0; j < W; ++j) values[j] = from_float<T>(x[j]);
  Whole bits;
  memcpy(&bits, values, sizeof bits);
  TASKARITH_CHECK_ALIGNED(target, sizeof(Whole));
  __stcs(reinterpret_cast<Whole*>(target), bits);
}

}  // namespace taskarith
