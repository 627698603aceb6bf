// Whether the host may read what is in a tensor: not in a GPU's memory, nor in what stands for it in the emulation.
#pragma once

#include "utils/check.h"

namespace taskarith {

inline bool readable([[maybe_unused]] const Tensor& x) {
#ifdef TASKARITH_EMULATED
  return false;
#else
  return x.is_cpu();
#endif
}

}  // namespace taskarith
