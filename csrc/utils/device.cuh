// What a CUDA kernel is written in: the toolkit under nvcc, csrc/emulation under an ordinary compiler. No torch here.
#pragma once

#ifdef TASKARITH_EMULATED
#include "emulation/cuda_emulation.h"

// One variable per block, poisoned and guarded: TASKARITH_SHARED(float, tile, [32][33]);
#define TASKARITH_SHARED(type, name, dims)                      \
  using name##_shared_type = type dims;                         \
  static char name##_shared_key;                                \
  name##_shared_type& name = *static_cast<name##_shared_type*>( \
      cuda_emulation::current_block->shared.get(&name##_shared_key, #name, sizeof(name##_shared_type)))
// The launch's dynamic shared memory, seen as an array of `type`.
#define TASKARITH_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(cuda_emulation::current_block->shared.dynamic())

#define TASKARITH_CHECK_ALIGNED(address, bytes) cuda_emulation::check_aligned(address, bytes)

#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define TASKARITH_SHARED(type, name, dims) __shared__ type name dims
#define TASKARITH_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char taskarith_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(taskarith_dynamic_shared)
#define TASKARITH_CHECK_ALIGNED(address, bytes)  // the hardware checks
#endif
