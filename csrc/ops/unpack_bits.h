// unpack_bits: bits to boolean masks, the inverse of pack_bits.
#pragma once

#include "ops/pack_bits.h"

namespace taskarith {

inline void check_unpack_bits(const TensorList& bits, const std::vector<int64_t>& numels) {
  STD_TORCH_CHECK(bits.size() == numels.size(), "unpack_bits: ", bits.size(), " masks, ", numels.size(), " sizes");
  for (size_t i = 0; i < bits.size(); ++i) check_packed("unpack_bits", bits[i], numels[i]);
}

}  // namespace taskarith
