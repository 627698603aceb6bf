// A kernel launch: the limits of every GPU this package is compiled for, then block after block.
#pragma once

#include <mutex>
#include <numeric>
#include <set>
#include <type_traits>

#include "emulation/block.h"

namespace cuda_emulation {

constexpr size_t kParameterLimit = 4096;  // what every driver accepts

template <class... Parameters>
constexpr size_t parameter_bytes() {
  size_t end = 0;
  ((end = (end + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)), ...);
  return end;
}

inline void check_limits(const dim3& grid, const dim3& block, size_t parameters) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw Error("grid " + text(grid) + " is outside 1 .. (2^31 - 1, 65535, 65535)");
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
      block.x * block.y * block.z > 1024)
    throw Error("block " + text(block) + " is empty or has more than 1024 threads or 64 in z");
  if (parameters > kParameterLimit)
    throw Error(std::to_string(parameters) + " bytes of kernel parameters, at most 4096 fit");
}

// The addresses of the kernels that have run: what tests have executed.
inline std::set<const void*>& executed_kernels() {
  static std::set<const void*> instance;
  return instance;
}

inline void run_grid(const void* kernel, const dim3& grid, const dim3& block, size_t shared_bytes,
                     const std::function<void()>& body) {
  static std::mutex one_launch;
  const std::lock_guard<std::mutex> lock(one_launch);
  const Bookkeeping own;
  join_threads();
  executed_kernels().insert(kernel);
  const uint64_t count = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  const Order order = schedule().order;
  std::vector<uint64_t> shuffled(order == Order::kRandom ? count : 0);
  std::iota(shuffled.begin(), shuffled.end(), uint64_t{0});
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(schedule().seed));
  for (uint64_t turn = 0; turn < count; ++turn) {
    const uint64_t i = order == Order::kRandom ? shuffled[turn] : order == Order::kReverse ? count - 1 - turn : turn;
    const uint3 index{static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                      static_cast<unsigned>(i / grid.x / grid.y)};
    // On the heap, so that a race detector does not take its barrier for the block's before.
    std::make_unique<Block>(grid, block, index, shared_bytes, body)->run();
  }
  join_threads();
}

// kernel<<<grid, block, shared_bytes>>>(args...); throws Error where a GPU would fail or do something undefined.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            std::type_identity_t<Parameters>... args) {
  check_limits(grid, block, parameter_bytes<Parameters...>());
  run_grid(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, [&] { kernel(args...); });
}

}  // namespace cuda_emulation
