#include <algorithm>

#include "math/weighted_sum.h"
#include "ops/weighted_sum.h"
#include "utils/launch.cuh"
#include "utils/vector.cuh"

namespace taskarith {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 4096;  // elements a block takes at a time; a multiple of every vector width
constexpr int kBlocksPerMultiprocessor = 8;

// One launch serves many tensors: a vision transformer has over a hundred that are too small to fill a GPU, and a
// launch each would cost as much as the work. Everything is passed by value in the 4 KB of kernel parameters, so no
// table has to be copied to the device and a captured graph keeps what it needs.
constexpr int kMaxTensors = 40;
constexpr int kMaxPointers = 380;
constexpr int kMaxTasks = kMaxPointers - 3;  // in one launch; more are summed in several, through `partial`

struct Entry {
  int64_t numel;
  int64_t first_chunk;
  int32_t column;   // of the weights
  bool vectorized;  // every pointer is 16-byte aligned
};

struct Batch {
  const double* weights;  // [tasks, stride]: the row of this launch's first task
  int64_t stride;
  int64_t chunks;
  int tasks;
  int tensors;
  bool first, last;  // the first launch starts from base, the last one rounds
  Entry entries[kMaxTensors];
  void* pointers[kMaxPointers];  // per tensor: base, out, partial sums (float64, or null), finetuned[tasks]
};
static_assert(sizeof(Batch) <= 4096);

template <int W, class T>
__device__ __forceinline__ void weighted_sum_vector(const Batch& batch, const Entry& entry, void* const* pointers,
                                                    int64_t i) {
  double* partial = static_cast<double*>(pointers[2]) + i;
  float x[W];
  double base[W], sum[W];
  load_vector<W>(static_cast<const T*>(pointers[0]) + i, x);
#pragma unroll
  for (int j = 0; j < W; ++j) {
    base[j] = x[j];
    sum[j] = batch.first ? base[j] : partial[j];
  }
#pragma unroll 4
  for (int t = 0; t < batch.tasks; ++t) {
    const double weight = __ldg(batch.weights + t * batch.stride + entry.column);
    load_vector<W>(static_cast<const T*>(pointers[3 + t]) + i, x);
#pragma unroll
    for (int j = 0; j < W; ++j) sum[j] = add_weighted_delta(sum[j], weight, x[j], base[j]);
  }
  if (batch.last) {
#pragma unroll
    for (int j = 0; j < W; ++j) x[j] = static_cast<float>(sum[j]);
    store_vector<W>(x, static_cast<T*>(pointers[1]) + i);
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j) partial[j] = sum[j];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) weighted_sum_kernel(const __grid_constant__ Batch batch) {
  constexpr int W = 16 / sizeof(T);
  int k = 0;
  for (int64_t chunk = blockIdx.x; chunk < batch.chunks; chunk += gridDim.x) {
    while (k + 1 < batch.tensors && chunk >= batch.entries[k + 1].first_chunk) ++k;
    const Entry& entry = batch.entries[k];
    void* const* pointers = batch.pointers + k * (batch.tasks + 3);
    const int64_t begin = (chunk - entry.first_chunk) * kChunk;
    const int64_t end = begin + kChunk < entry.numel ? begin + kChunk : entry.numel;
    const int64_t vector_end = entry.vectorized ? begin + (end - begin) / W * W : begin;
    for (int64_t i = begin + threadIdx.x * W; i < vector_end; i += kThreads * W)
      weighted_sum_vector<W, T>(batch, entry, pointers, i);
    for (int64_t i = vector_end + threadIdx.x; i < end; i += kThreads)
      weighted_sum_vector<1, T>(batch, entry, pointers, i);
  }
}

struct Inputs {
  const TensorList& base;
  const TensorList& finetuned;
  TensorList& out;
  const double* weights;
  int64_t tasks;
};

void launch(const Launcher& launcher, ScalarType type, const Batch& batch) {
  const int64_t grid = std::min<int64_t>(batch.chunks, launcher.multiprocessors() * kBlocksPerMultiprocessor);
  if (grid == 0) return;
  if (type == ScalarType::Float)
    launcher.launch(weighted_sum_kernel<float>, grid, kThreads, 0, batch);
  else if (type == ScalarType::Half)
    launcher.launch(weighted_sum_kernel<__half>, grid, kThreads, 0, batch);
  else
    launcher.launch(weighted_sum_kernel<__nv_bfloat16>, grid, kThreads, 0, batch);
}

// Adds tensor i and its tasks [first, first + batch.tasks) to the batch.
void append(Batch& batch, const Inputs& x, int64_t i, int64_t first, void* partial) {
  const int64_t num_tensors = static_cast<int64_t>(x.base.size());
  void** p = batch.pointers + batch.tensors * (batch.tasks + 3);
  p[0] = const_cast<void*>(x.base[i].const_data_ptr());
  p[1] = x.out[i].mutable_data_ptr();
  p[2] = partial;
  for (int64_t t = 0; t < batch.tasks; ++t)
    p[3 + t] = const_cast<void*>(x.finetuned[(first + t) * num_tensors + i].const_data_ptr());
  bool aligned = true;
  for (int64_t j = 0; j < 3 + batch.tasks; ++j) aligned = aligned && reinterpret_cast<uintptr_t>(p[j]) % 16 == 0;
  const int64_t numel = x.base[i].numel();
  batch.entries[batch.tensors++] = {numel, batch.chunks, static_cast<int32_t>(i), aligned};
  batch.chunks += (numel + kChunk - 1) / kChunk;
}

Batch empty_batch(const Inputs& x, int64_t first, int64_t tasks) {
  Batch batch{};
  batch.stride = static_cast<int64_t>(x.base.size());
  batch.weights = x.weights + first * batch.stride;
  batch.tasks = static_cast<int>(tasks);
  batch.first = first == 0;
  batch.last = first + tasks == x.tasks;
  return batch;
}

void weighted_sum_type(const Launcher& launcher, const Inputs& x, ScalarType type) {
  const int64_t capacity = std::min<int64_t>(kMaxTensors, kMaxPointers / (x.tasks + 3));
  Batch batch = empty_batch(x, 0, x.tasks);
  for (int64_t i = 0; i < static_cast<int64_t>(x.base.size()); ++i) {
    if (x.base[i].scalar_type() != type) continue;
    if (batch.tensors == capacity) {
      launch(launcher, type, batch);
      batch = empty_batch(x, 0, x.tasks);
    }
    append(batch, x, i, 0, nullptr);
  }
  launch(launcher, type, batch);
}

// More tasks than pointers fit in one launch: the sums wait in float64, so that they are still rounded once.
void weighted_sum_many_tasks(const Launcher& launcher, const Inputs& x) {
  for (int64_t i = 0; i < static_cast<int64_t>(x.base.size()); ++i) {
    Tensor partial = torch::stable::new_empty(x.base[i], {x.base[i].numel()}, ScalarType::Double);
    for (int64_t first = 0; first < x.tasks; first += kMaxTasks) {
      Batch batch = empty_batch(x, first, std::min<int64_t>(kMaxTasks, x.tasks - first));
      append(batch, x, i, first, partial.mutable_data_ptr());
      launch(launcher, x.base[i].scalar_type(), batch);
    }
  }
}

TensorList weighted_sum_cuda(TensorList base, TensorList finetuned, Tensor weights) {
  const int64_t tasks = check_weighted_sum(base, finetuned, weights);
  TensorList out;
  if (base.empty()) return out;
  check_device("weighted_sum", base, weights);
  check_device("weighted_sum", finetuned, weights);
  const Launcher launcher("weighted_sum", base[0]);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  weights = torch::stable::contiguous(weights);
  for (const Tensor& b : base) out.push_back(torch::stable::empty_like(b));
  const Inputs x{base, finetuned, out, weights.const_data_ptr<double>(), tasks};
  if (tasks > kMaxTasks) {
    weighted_sum_many_tasks(launcher, x);
  } else {
    for (ScalarType type : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half})
      weighted_sum_type(launcher, x, type);
  }
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("weighted_sum", TORCH_BOX(&weighted_sum_cuda)); }

}  // namespace
}  // namespace taskarith
