// where_bits: on where the bit is set, off elsewhere.
#pragma once

#include "ops/pack_bits.h"

namespace taskarith {

inline void check_where_bits(const TensorList& bits, const TensorList& on, const TensorList& off) {
  check_task_lists("where_bits", off, on);
  STD_TORCH_CHECK(on.size() == off.size() && bits.size() == off.size(), "where_bits: the lists differ in length");
  for (size_t i = 0; i < bits.size(); ++i) {
    check_packed("where_bits", bits[i], off[i].numel());
    STD_TORCH_CHECK(bits[i].is_cpu() == off[i].is_cpu(), "where_bits: bits and tensors are on different devices");
  }
}

}  // namespace taskarith
