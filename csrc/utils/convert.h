// Storage types to float and back, block by block, so that kernels are written once, in float.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>

#include "utils/simd.h"

namespace taskarith {

using torch::headeronly::ScalarType;

inline bool is_storage_type(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half;
}

inline int64_t element_size(ScalarType t) { return t == ScalarType::Float ? 4 : 2; }

namespace {

TASKARITH_SIMD void bfloat16_to_float(const uint16_t* __restrict x, float* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    y[i] = __builtin_bit_cast(float, bits);
  }
}

// Round to nearest, ties to even; a NaN stays a quiet NaN.
TASKARITH_SIMD void float_to_bfloat16(const float* __restrict x, uint16_t* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    y[i] = static_cast<uint16_t>(x[i] == x[i] ? rounded : (bits >> 16) | 0x40u);
  }
}

TASKARITH_SIMD void half_to_float(const _Float16* __restrict x, float* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i]);
}

TASKARITH_SIMD void float_to_half(const float* __restrict x, _Float16* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<_Float16>(x[i]);
}

}  // namespace

// The n elements that start at element `offset` of `data`, as floats: in place for float storage, else in `buffer`.
inline const float* load_block(const void* data, ScalarType type, int64_t offset, int64_t n, float* buffer) {
  if (type == ScalarType::Float) return static_cast<const float*>(data) + offset;
  if (type == ScalarType::BFloat16)
    bfloat16_to_float(static_cast<const uint16_t*>(data) + offset, buffer, n);
  else
    half_to_float(static_cast<const _Float16*>(data) + offset, buffer, n);
  return buffer;
}

inline void store_block(const float* x, void* data, ScalarType type, int64_t offset, int64_t n) {
  if (type == ScalarType::Float)
    std::memcpy(static_cast<float*>(data) + offset, x, n * sizeof(float));
  else if (type == ScalarType::BFloat16)
    float_to_bfloat16(x, static_cast<uint16_t*>(data) + offset, n);
  else
    float_to_half(x, static_cast<_Float16*>(data) + offset, n);
}

}  // namespace taskarith
