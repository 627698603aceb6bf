// What the tests set in the library of emulated operators, by ctypes.
#include "emulation/cuda_emulation.h"

// order: 0 forward, 1 reverse, 2 random by `seed`. Returns 0, or 1 for an unknown order.
extern "C" __attribute__((visibility("default"))) int taskarith_emulation_schedule(int order, unsigned seed) {
  if (order < 0 || order > 2) return 1;
  cuda_emulation::schedule() = {static_cast<cuda_emulation::Order>(order), seed};
  return 0;
}
