// Sums over the threads of a block in a fixed order, so that floating-point results are the same on every run.
#pragma once

#include "utils/device.cuh"

namespace taskarith {

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// x[n] becomes the sum of all threads' x[n], in every thread. kBlock threads, a multiple of 32, must come.
template <int kBlock, int N, class T>
__device__ __forceinline__ void block_sum(T (&x)[N]) {
  constexpr int kWarps = kBlock / 32;
  TASKARITH_SHARED(T, sums, [N][kWarps]);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    x[n] = warp_sum(x[n]);
    if (threadIdx.x % 32 == 0) sums[n][threadIdx.x / 32] = x[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    x[n] = sums[n][0];
    for (int warp = 1; warp < kWarps; ++warp) x[n] += sums[n][warp];
  }
  __syncthreads();  // the next call may write
}

}  // namespace taskarith
