// From an operator to its kernel: device, stream, checked launch, registration. The same source is taskarith's CUDA
// kernel under nvcc and taskarith_emulated's CPU kernel under an ordinary compiler.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <type_traits>

#include "utils/check.h"
#include "utils/device.cuh"

#ifdef TASKARITH_EMULATED
#define TASKARITH_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(taskarith_emulated, CPU, m)
#else
#define TASKARITH_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(taskarith, CUDA, m)
#include <dlfcn.h>
#endif

namespace taskarith {

#ifdef TASKARITH_EMULATED

class Launcher {
 public:
  Launcher(const char* op, const Tensor&) : op_(op) {}

  int multiprocessors() const { return 2; }  // few, so that small tests go round the grid-stride loops

  template <class... Parameters>
  void launch(void (*kernel)(Parameters...), int64_t grid, int block, size_t shared_bytes,
              const std::type_identity_t<Parameters>&... args) const {
    try {
      cuda_emulation::launch(kernel, dim3(static_cast<unsigned>(grid)), dim3(block), shared_bytes, args...);
    } catch (const cuda_emulation::Error& error) {
      STD_TORCH_CHECK(false, op_, ": ", error.what());
    }
  }

 private:
  const char* op_;
};

#else

// torch's current stream of a device. Looked up in the libtorch_cuda that torch has loaded, and not linked: so that
// this library also loads into a torch without CUDA, and because torch's libraries are not in the global scope, where a
// weak symbol would be resolved.
inline cudaStream_t current_stream(const char* op, int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  STD_TORCH_CHECK(function, op, ": this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Makes the tensor's device current while it lives, and launches on that device's current stream. Nothing here waits
// for the device, so a launch may be captured in a CUDA graph.
class Launcher {
 public:
  Launcher(const char* op, const Tensor& tensor)
      : op_(op), device_(tensor.get_device_index()), guard_(device_), stream_(current_stream(op, device_)) {}

  int multiprocessors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_));
    return count;
  }

  template <class... Parameters>
  void launch(void (*kernel)(Parameters...), int64_t grid, int block, size_t shared_bytes,
              const std::type_identity_t<Parameters>&... args) const {
    if (shared_bytes > 48 * 1024)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(block);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    check(cudaLaunchKernelEx(&config, kernel, args...));
  }

 private:
  void check(cudaError_t status) const {
    STD_TORCH_CHECK(status == cudaSuccess, op_, ": CUDA reports: ", cudaGetErrorString(status));
  }

  const char* op_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

#endif

// A launch sees one device: that of `first`.
inline void check_device(const char* op, const TensorList& tensors, const Tensor& first) {
  for (const Tensor& t : tensors)
    STD_TORCH_CHECK(t.get_device_index() == first.get_device_index(), op, ": tensors are on different GPUs");
}

}  // namespace taskarith
