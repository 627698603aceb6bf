#include "ops/dual_glu.h"
#include "utils/array_steps.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int kBytes = kThreads * 16;  // of a, that a block takes at a time

// Null where a tangent is absent.
struct Arrays {
  const void *a, *da, *b, *db;
  void* dy;
  int64_t numel;
  Storage storage;
  bool aligned;
};

// This thread's vector; n elements are left from i on.
template <GateForm kForm, class T>
__device__ __forceinline__ void combine(const Arrays& arrays, int64_t i, int n, bool whole) {
  constexpr int W = 16 / sizeof(T);
  T a[W], da[W] = {}, b[W] = {}, db[W] = {};
  load_some<W>(static_cast<const T*>(arrays.a) + i, n, whole, a);
  if (arrays.da != nullptr) {
    load_some<W>(static_cast<const T*>(arrays.da) + i, n, whole, da);
    load_some<W>(static_cast<const T*>(arrays.b) + i, n, whole, b);
  }
  if (arrays.db != nullptr) load_some<W>(static_cast<const T*>(arrays.db) + i, n, whole, db);
  float dy[W];
#pragma unroll
  for (int j = 0; j < W; ++j) {
    const float x = to_float(a[j]);
    dy[j] = gate_slope<kForm>(x) * to_float(b[j]) * to_float(da[j]) + gate_value<kForm>(x) * to_float(db[j]);
  }
  store_floats<W>(dy, n, whole, static_cast<T*>(arrays.dy) + i);
}

template <GateForm kForm, class T>
__device__ __forceinline__ void combine(const Arrays& arrays) {
  constexpr int kStep = kBytes / sizeof(T), W = 16 / sizeof(T);
  for_each_step<kStep>(arrays.numel, arrays.aligned, [&](int64_t begin, int left, auto whole) {
    const int first = threadIdx.x * W;
    combine<kForm, T>(arrays, begin + first, left - first, whole);
  });
}

template <GateForm kForm>
__global__ void __launch_bounds__(kThreads) dual_glu_kernel(const Arrays arrays) {
  with_storage(arrays.storage, [&](auto zero) { combine<kForm, decltype(zero)>(arrays); });
}

Tensor dual_glu_cuda(Tensor a, std::optional<Tensor> da, Tensor b, std::optional<Tensor> db, std::string form) {
  const GateForm gate = check_dual_glu(a, da, b, db, form);
  const Launcher launcher("dual_glu", a);
  std::optional<Tensor> tensors[4] = {a, da, b, db};
  const void* from[4] = {};
  for (int i = 0; i < 4; ++i) {
    if (!tensors[i].has_value()) continue;
    check_device("dual_glu", {*tensors[i]}, a);
    tensors[i] = torch::stable::contiguous(*tensors[i]);
    from[i] = tensors[i]->const_data_ptr();
  }
  Tensor out = torch::stable::empty_like(*tensors[0]);
  const Arrays arrays{from[0],
                      from[1],
                      from[2],
                      from[3],
                      out.mutable_data_ptr(),
                      a.numel(),
                      storage_of(a.scalar_type()),
                      all_aligned({from[0], from[1], from[2], from[3], out.const_data_ptr()})};
  const auto kernel = gate == GateForm::kRelu   ? dual_glu_kernel<GateForm::kRelu>
                      : gate == GateForm::kSilu ? dual_glu_kernel<GateForm::kSilu>
                      : gate == GateForm::kErf  ? dual_glu_kernel<GateForm::kErf>
                                                : dual_glu_kernel<GateForm::kTanh>;
  const int64_t grid = blocks_for_steps(launcher, arrays.numel, kBytes / element_size(a.scalar_type()));
  if (grid > 0) launcher.launch(kernel, grid, kThreads, 0, arrays);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("dual_glu", TORCH_BOX(&dual_glu_cuda)); }

}  // namespace
}  // namespace taskarith
