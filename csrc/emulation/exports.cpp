// What the tests set and ask in the library of emulated operators, by ctypes.
#include <dlfcn.h>

#include "emulation/cuda_emulation.h"

// order: 0 forward, 1 reverse, 2 random by `seed`. Returns 0, or 1 for an unknown order.
extern "C" __attribute__((visibility("default"))) int taskarith_emulation_schedule(int order, unsigned seed) {
  if (order < 0 || order > 2) return 1;
  cuda_emulation::schedule() = {static_cast<cuda_emulation::Order>(order), seed};
  return 0;
}

// The kernels executed since the last call: their places in the library's file, at most `limit`. Returns how many.
extern "C" __attribute__((visibility("default"))) size_t taskarith_emulation_executed(uint64_t* places, size_t limit) {
  size_t count = 0;
  for (const void* kernel : cuda_emulation::executed_kernels()) {
    Dl_info library;
    if (count == limit || dladdr(kernel, &library) == 0) break;
    places[count++] = static_cast<uint64_t>(static_cast<const char*>(kernel) - static_cast<char*>(library.dli_fbase));
  }
  cuda_emulation::executed_kernels().clear();
  return count;
}
