// Runs CUDA C++ kernels on the CPU, for tests: the same .cu file, compiled by an ordinary C++20 compiler.
//
// Executed: grids and blocks of any shape, static and dynamic shared memory, __syncthreads and its votes, warp shuffles
// and votes, __syncwarp, atomics, vector types, half and bfloat16, the usual intrinsics.
// Reported, with thread, block and line: a divergent barrier, lanes of a warp at different calls, a mask that names
// lanes which do not come or leaves out its caller, a shuffle that reads such a lane, a deadlock, a write behind a
// shared array, a misaligned vector access (utils/vector.cuh), a launch outside the limits.
// Made visible: shared memory starts as NaN; blocks and threads run forwards, in reverse or shuffled (schedule()), each
// thread until it ends or waits, so that a missing barrier changes the result in at least one order.
// Under the compiler's sanitizers also: accesses out of bounds, and races between threads (sanitizers.h says how).
// Not modelled: time, caches, textures, streams, cooperative groups, tensor cores, threads that spin for one another.
//
// One launch at a time, on the calling thread. Needs the CUDA toolkit's headers, nothing else of it.
#pragma once

#include "emulation/atomic.h"
#include "emulation/barrier.h"
#include "emulation/intrinsics.h"
#include "emulation/launch.h"
#include "emulation/types.h"
#include "emulation/warp.h"

#define threadIdx (cuda_emulation::current_thread->index)
#define blockIdx (cuda_emulation::current_block->index)
#define blockDim (cuda_emulation::current_block->size)
#define gridDim (cuda_emulation::current_block->grid)
#define warpSize 32
