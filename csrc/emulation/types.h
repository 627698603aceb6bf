// CUDA's types and keywords for an ordinary C++ compiler. The toolkit's headers supply vector types, half and bfloat16
// with their host arithmetic; their keywords are replaced by nothing.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// A plain declaration could be neither poisoned nor bounded; the macros of utils/device.cuh can.
#define __shared__ use_TASKARITH_SHARED_instead_of_shared_variables
