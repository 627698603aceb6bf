// One launch over many tensors: a vision transformer has over a hundred that are too small to fill a GPU.
//
// A table in device memory says where they are. The host writes it there by kernels that carry it in their parameters,
// so nothing waits for the device, no host memory has to stay, and a captured CUDA graph keeps what it needs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "utils/launch.cuh"
#include "utils/vector.cuh"

namespace taskarith {

constexpr int kThreads = 256;
constexpr int64_t kChunk =
    4096;  // elements that a block takes at a time: a multiple of every vector and of a mask's word
constexpr int kBlocksPerMultiprocessor = 8;

enum class Storage : int32_t { kFloat, kHalf, kBFloat16, kOther };

inline Storage storage_of(ScalarType type) {
  if (type == ScalarType::Float) return Storage::kFloat;
  if (type == ScalarType::Half) return Storage::kHalf;
  return type == ScalarType::BFloat16 ? Storage::kBFloat16 : Storage::kOther;
}

// f(a value of the storage type): one kernel serves tensors of all types.
template <class F>
__device__ __forceinline__ void with_storage(Storage storage, const F& f) {
  if (storage == Storage::kFloat)
    f(float{});
  else if (storage == Storage::kHalf)
    f(__half{});
  else
    f(__nv_bfloat16{});
}

struct Nothing {};

// A tensor and what an operator wants to know of it.
template <class Info>
struct Entry {
  int64_t numel;
  int64_t first_chunk;
  int64_t index;  // in the operator's list
  Storage storage;
  bool aligned;  // every pointer that is used by vectors, to 16 bytes
  Info info;
};

template <class Info = Nothing>
struct Table {
  const Entry<Info>* entries;
  void* const* pointers;  // [tensors, width]
  int64_t tensors, width;
  int64_t chunks, chunk_size;

  __device__ __forceinline__ int64_t entry_of(int64_t chunk) const {
    int64_t low = 0, high = tensors;  // the last entry that does not start behind the chunk
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (entries[middle].first_chunk <= chunk ? low : high) = middle;
    }
    return low;
  }
};

// Elements [begin, end) of a tensor.
template <class Info = Nothing>
struct Span {
  const Entry<Info>& tensor;
  void* const* pointers;
  int64_t chunk, begin, end;

  template <class T>
  __device__ __forceinline__ T* at(int64_t pointer) const {
    return static_cast<T*>(pointers[pointer]);
  }
};

template <class Info>
__device__ __forceinline__ Span<Info> span_of(const Table<Info>& table, int64_t chunk) {
  const int64_t i = table.entry_of(chunk);
  const Entry<Info>& tensor = table.entries[i];
  const int64_t begin = (chunk - tensor.first_chunk) * table.chunk_size;
  const int64_t end = begin + table.chunk_size < tensor.numel ? begin + table.chunk_size : tensor.numel;
  return {tensor, table.pointers + i * table.width, chunk, begin, end};
}

// f(span) for the chunks of this block.
template <class Info, class F>
__device__ __forceinline__ void for_each_span(const Table<Info>& table, const F& f) {
  for (int64_t chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) f(span_of(table, chunk));
}

// f(i, n, whole) for this thread's vectors of W elements: the first element, how many from it on are in the span, and
// a constant that is true if W are and lie aligned.
template <int W, class Info, class F>
__device__ __forceinline__ void for_each_vector(const Span<Info>& span, const F& f) {
  for (int64_t i = span.begin + threadIdx.x * W; i < span.end; i += kThreads * W) {
    const int n = static_cast<int>(span.end - i);
    if (span.tensor.aligned && n >= W)
      f(i, n, Constant<true>{});
    else
      f(i, n, Constant<false>{});
  }
}

namespace {

constexpr int kPacketWords = 500;  // under the 4 KB of kernel parameters

struct Packet {
  uint64_t* target;
  int64_t count;
  uint64_t words[kPacketWords];
};

__global__ void upload_kernel(const __grid_constant__ Packet packet) {
  for (int64_t i = threadIdx.x; i < packet.count; i += blockDim.x) packet.target[i] = packet.words[i];
}

// Words of host memory as device memory beside `like`.
Tensor upload(const Launcher& launcher, const Tensor& like, const std::vector<uint64_t>& words) {
  const int64_t size = static_cast<int64_t>(words.size());
  Tensor memory = torch::stable::new_empty(like, {size}, ScalarType::Long);
  for (int64_t i = 0; i < size; i += kPacketWords) {
    Packet packet;
    packet.target = static_cast<uint64_t*>(memory.mutable_data_ptr()) + i;
    packet.count = std::min<int64_t>(kPacketWords, size - i);
    std::copy_n(words.begin() + i, packet.count, packet.words);
    launcher.launch(upload_kernel, 1, 128, 0, packet);
  }
  return memory;
}

template <class... Parameters>
void launch_over(const Launcher& launcher, int64_t items, void (*kernel)(Parameters...),
                 const std::type_identity_t<Parameters>&... args) {
  const int64_t grid = std::min<int64_t>(items, launcher.multiprocessors() * kBlocksPerMultiprocessor);
  if (grid > 0) launcher.launch(kernel, grid, kThreads, 0, args...);
}

}  // namespace

// Collects tensors; view() is what a kernel gets, valid while the object lives (and, in the order of the stream,
// after).
template <class Info = Nothing>
class TensorTable {
 public:
  explicit TensorTable(int64_t chunk_size = kChunk) : chunk_size_(chunk_size) {}

  // Every tensor has the same number of pointers: first those that are read and written by vectors.
  void add(int64_t numel, ScalarType type, int64_t index, const std::vector<const void*>& vectors,
           const std::vector<const void*>& others = {}, Info info = {}) {
    bool aligned = true;
    for (const void* p : vectors) {
      pointers_.push_back(reinterpret_cast<uintptr_t>(p));
      aligned = aligned && all_aligned({p});
    }
    for (const void* p : others) pointers_.push_back(reinterpret_cast<uintptr_t>(p));
    entries_.push_back({numel, chunks_, index, storage_of(type), aligned, info});
    chunks_ += (numel + chunk_size_ - 1) / chunk_size_;
  }

  int64_t chunks() const { return chunks_; }

  Table<Info> view(const Launcher& launcher, const Tensor& like) {
    constexpr int64_t kWords = sizeof(Entry<Info>) / 8;
    static_assert(sizeof(Entry<Info>) % 8 == 0);
    const int64_t tensors = static_cast<int64_t>(entries_.size());
    std::vector<uint64_t> words(tensors * kWords);
    std::memcpy(words.data(), entries_.data(), tensors * sizeof(Entry<Info>));
    words.insert(words.end(), pointers_.begin(), pointers_.end());
    memory_.push_back(upload(launcher, like, words));
    const uint64_t* start = static_cast<const uint64_t*>(memory_.back().const_data_ptr());
    return {reinterpret_cast<const Entry<Info>*>(start),
            reinterpret_cast<void* const*>(start + tensors * kWords),
            tensors,
            tensors ? static_cast<int64_t>(pointers_.size()) / tensors : 0,
            chunks_,
            chunk_size_};
  }

 private:
  int64_t chunk_size_, chunks_ = 0;
  std::vector<Entry<Info>> entries_;
  std::vector<uint64_t> pointers_;
  TensorList memory_;
};

// first, base and all tasks of tensor i: pointers 0, 1 and 2 + t.
inline std::vector<const void*> task_pointers(const void* first, const TensorList& base, const TensorList& finetuned,
                                              int64_t i) {
  std::vector<const void*> out{first, base[i].const_data_ptr()};
  for (size_t j = i; j < finetuned.size(); j += base.size()) out.push_back(finetuned[j].const_data_ptr());
  return out;
}

// Uninitialized results like `base`.
inline TensorList empty_like_each(const TensorList& base) {
  TensorList out;
  for (const Tensor& b : base) out.push_back(torch::stable::empty_like(b));
  return out;
}

}  // namespace taskarith
