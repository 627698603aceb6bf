// Small kernels that use every construct the emulation knows, and kernels with one bug each. Also compiled by nvcc.
#pragma once

#include <cstdint>

#include "utils/device.cuh"
#include "utils/vector.cuh"

constexpr unsigned kAll = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(kAll, v, offset);
  return v;
}

template <class T, int warps>
__global__ void block_sum(const T* x, float* out, int n) {
  TASKARITH_SHARED(float, sums, [warps]);
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    sum += static_cast<float>(x[i]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = warp_sum(threadIdx.x < warps ? sums[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) atomicAdd(out, sum);
}

__global__ void tree_max(const float* x, float* out, int n) {
  TASKARITH_DYNAMIC_SHARED(float, values);
  const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  values[t] = i < n ? x[i] : -INFINITY;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) values[t] = fmaxf(values[t], values[t + half]);
    __syncthreads();
  }
  if (t == 0) out[blockIdx.x] = values[0];
}

__global__ void compact(const int* x, int* out, int* count, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned lane = threadIdx.x % 32;
  const bool keep = i < n && x[i] % 3 == 0;
  const unsigned votes = __ballot_sync(kAll, keep);
  int begin = 0;
  if (lane == 0) begin = atomicAdd(count, __popc(votes));
  begin = __shfl_sync(kAll, begin, 0);
  if (keep) out[begin + __popc(votes & ((1u << lane) - 1))] = x[i];
}

// out[0..n): inclusive scan of a warp; then the sum over each half warp by xor; then lane 5 of each quarter.
__global__ void shuffles(const int* x, int* out) {
  const int t = threadIdx.x, n = blockDim.x;
  int scan = x[t], sum = x[t];
  for (int d = 1; d < 32; d *= 2) {
    const int up = __shfl_up_sync(kAll, scan, d);
    if (t % 32 >= d) scan += up;
  }
  for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(kAll, sum, d, 16);
  out[t] = scan;
  out[n + t] = sum;
  out[2 * n + t] = __shfl_sync(kAll, x[t], 5, 8);
}

// A partial last warp, lower and upper half warps on their own, the votes of warp and block.
__global__ void votes(int* out) {
  const int t = threadIdx.x;
  const unsigned mask = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  if (t % 32 < 16) {
    if (__any_sync(mask, t == 3) != (t < 16)) atomicAdd(out, 1);
  } else if (!__all_sync(mask, t >= 16)) {
    atomicAdd(out, 1);
  }
  __syncwarp();
  if (__syncthreads_count(t % 2) != static_cast<int>(blockDim.x) / 2) atomicAdd(out, 1);
  if (!__syncthreads_or(t == 0) || __syncthreads_or(t > 5000)) atomicAdd(out, 1);
  if (__syncthreads_and(t > 0) || !__syncthreads_and(t >= 0)) atomicAdd(out, 1);
}

__global__ void shape(int* visits) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(visits + block * blockDim.x * blockDim.y * blockDim.z + thread, 1);
}

__global__ void vectors(const float4* x, float4* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = make_float4(x[i].w, x[i].z, x[i].y, 2 * x[i].x);
}

__global__ void atomics(int* cells, unsigned long long* bits) {
  const int t = threadIdx.x;
  atomicMax(cells, t);
  atomicMin(cells + 1, -t);
  atomicSub(cells + 2, 1);
  atomicExch(cells + 3, 7);
  atomicCAS(cells + 4, 0, t + 1);
  atomicOr(bits, 1ull << t % 64);
  atomicAnd(bits + 1, ~(1ull << t % 64));
}

template <class T>
__device__ T first_threads_value(T value) {
  TASKARITH_SHARED(T, box, [1]);
  if (threadIdx.x == 0) box[0] = value;
  __syncthreads();
  return box[0];
}

// Two instantiations of one shared variable are two variables.
__global__ void two_boxes(double* out) {
  const float a = first_threads_value(1.5f + threadIdx.x);
  const double b = first_threads_value(0.25 + threadIdx.x);
  if (threadIdx.x == blockDim.x - 1) *out = a + b;
}

// The lanes of one warp exchange values through shared memory.
__global__ void warp_tile(const float* x, float* out) {
  TASKARITH_SHARED(float, tile, [64]);
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = x[round * 64 + threadIdx.x];
    __syncwarp();
    out[round * 64 + threadIdx.x] = tile[threadIdx.x ^ 31];
    __syncwarp();
  }
}

// From here on: one bug each.

// The neighbour's value may not be there yet.
__global__ void missing_barrier(const float* x, float* out) {
  TASKARITH_SHARED(float, tile, [64]);
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// The second round may overwrite what a slower thread has still to read.
__global__ void missing_second_barrier(const float* x, float* out) {
  TASKARITH_SHARED(float, tile, [64]);
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = x[round * 64 + threadIdx.x];
    __syncthreads();
    out[round * 64 + threadIdx.x] = tile[63 - threadIdx.x];
  }
}

__global__ void lost_update(int* out) {
  const int old = *out;
  __syncthreads();
  *out = old + 1;
}

__global__ void two_blocks_one_word(int* out) {
  if (threadIdx.x == 0) ++*out;
}

__global__ void read_beside_atomic(int* out) {
  if (*out >= 0) atomicAdd(out, 1);
}

// A shuffle makes the lanes meet, but promises no order of their memory accesses.
__global__ void shuffle_for_syncwarp(const float* x, float* out) {
  TASKARITH_SHARED(float, tile, [64]);
  tile[threadIdx.x] = x[threadIdx.x];
  __shfl_sync(kAll, 0, 0);
  out[threadIdx.x] = tile[threadIdx.x ^ 31];
}

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
    out[0] = 1;
  } else {
    __syncthreads();
    out[1] = 1;
  }
}

__global__ void divergent_warp(int* out) {
  if (threadIdx.x < 16)
    out[0] = __shfl_sync(kAll, 1, 0);
  else
    out[1] = __any_sync(kAll, 1);
}

__global__ void mask_without_caller(int* out) { out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0); }

__global__ void mask_with_ended_lanes(int* out) {
  if (threadIdx.x >= 8) return;
  out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
}

__global__ void read_outside_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 20);
}

__global__ void read_missing_lane(int* out) { out[threadIdx.x] = __shfl_down_sync(kAll, 1, 1); }

__global__ void deadlock(int* out) {
  if (threadIdx.x == 0)
    __syncwarp();
  else
    __syncthreads();
  out[0] = 1;
}

__global__ void behind_static(int*) {
  TASKARITH_SHARED(float, tile, [32]);
  tile[threadIdx.x + 1] = 0;
}

__global__ void behind_dynamic(int*) {
  TASKARITH_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + 1] = 0;
}

__global__ void too_much_static(int*) {
#ifdef TASKARITH_EMULATED  // nvcc refuses it when it compiles
  TASKARITH_SHARED(float, tile, [16384]);
  tile[threadIdx.x] = 0;
#endif
}

__global__ void misaligned_vector(int* out) {
  float x[4];
  taskarith::load_vector<4>(reinterpret_cast<const float*>(out) + 1, x);
  out[0] = static_cast<int>(x[0]);
}

// From here on: what a sanitizer of the compiler reports.

__global__ void read_behind(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x + 1]; }

__global__ void int_offset(int* out) {
  const int row = 50000;
  out[0] = (row + static_cast<int>(threadIdx.x)) * row;
}

struct Large {
  char bytes[4089];
};
__global__ void large_parameters(int*, Large) {}
__global__ void nothing(int*) {}
