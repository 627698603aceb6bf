// Values in storage types moved as float: W at a time by one 128-bit access, or one by one.
#pragma once

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

template <int W, class T>
struct alignas(W * sizeof(T)) Vector {
  T values[W];
};

// `source` must be aligned to W elements.
template <int W, class T>
__device__ __forceinline__ void load_vector(const T* source, float (&x)[W]) {
  const Vector<W, T> v = *reinterpret_cast<const Vector<W, T>*>(source);
#pragma unroll
  for (int j = 0; j < W; ++j) x[j] = to_float(v.values[j]);
}

template <int W, class T>
__device__ __forceinline__ void store_vector(const float (&x)[W], T* target) {
  Vector<W, T> v;
#pragma unroll
  for (int j = 0; j < W; ++j) v.values[j] = from_float<T>(x[j]);
  *reinterpret_cast<Vector<W, T>*>(target) = v;
}

}  // namespace taskarith
