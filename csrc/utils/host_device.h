// For arithmetic that the CPU and the CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define TASKARITH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TASKARITH_HOST_DEVICE inline __attribute__((always_inline))
#endif
