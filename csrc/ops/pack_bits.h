// pack_bits: boolean masks to bits, the lowest bit first. Also what unpack_bits and where_bits check about bits.
#pragma once

#include "math/bits.h"
#include "utils/check.h"

namespace taskarith {

inline void check_pack_bits(const TensorList& masks) {
  for (const Tensor& m : masks) STD_TORCH_CHECK(m.scalar_type() == ScalarType::Bool, "pack_bits: masks must be bool");
}

inline void check_packed(const char* op, const Tensor& bits, int64_t numel) {
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && numel >= 0 && bits.numel() == packed_size(numel), op,
                  ": bits must be uint8 of ", packed_size(numel), " bytes for ", numel, " entries, got ", bits.numel());
}

}  // namespace taskarith
