#include "math/weighted_sum.h"
#include "ops/breadcrumbs.h"
#include "utils/row_search.cuh"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int kRowThreads = 128;
constexpr int64_t kMaxRow = int64_t{1} << 31;
constexpr int64_t kMaxTasks = 4096;  // whose bands fit in shared memory

struct RowInfo {
  int size, removed, kept;
  int unused;
};

// The entries to keep: in the second cut, but not in the first.
struct Band {
  Cut cuts[2];
};

using RowSpan = Span<RowInfo>;

template <class T>
__device__ __forceinline__ void find_band(const T* finetuned, const T* base, const RowInfo& row, unsigned* counts,
                                          Band& band) {
  const auto bits_of = [&](int i) { return ordered_magnitude(to_float(finetuned[i]) - to_float(base[i])); };
#pragma unroll 1
  for (int c = 0; c < 2; ++c) {
    const int rank = c == 0 ? row.removed : row.removed + row.kept;
    const Cut cut = select_rank<kRowThreads>(row.size, rank, bits_of, counts);
    if (threadIdx.x == 0) band.cuts[c] = cut;
  }
}

// A row of all tasks. Every pass after a task's first finds the row in the caches.
template <class T>
__device__ __forceinline__ void merge_row(const RowSpan& span, int64_t tasks, const double* weights, int64_t length,
                                          unsigned* counts, Band* bands) {
  const RowInfo& row = span.tensor.info;
  const int64_t begin = span.begin * row.size;
  const T* base = span.at<const T>(1) + begin;
  for (int64_t t = 0; t < tasks; ++t) find_band(span.at<const T>(2 + t) + begin, base, row, counts, bands[t]);
  __syncthreads();
  for (int i = threadIdx.x; i < row.size; i += kRowThreads) {
    const float from = to_float(base[i]);
    double sum = from;
    for (int64_t t = 0; t < tasks; ++t) {
      const float x = to_float(span.at<const T>(2 + t)[begin + i]);
      const uint32_t bits = ordered_magnitude(x - from);
      if (bands[t].cuts[1].holds(bits, i) && !bands[t].cuts[0].holds(bits, i))
        sum = add_weighted_delta(sum, __ldg(weights + t * length + span.tensor.index), x, from);
    }
    span.at<T>(0)[begin + i] = from_float<T>(static_cast<float>(sum));
  }
  __syncthreads();  // the next row writes bands
}

// Rows of any length: a block takes row after row, a chunk of the table is one row.
__global__ void __launch_bounds__(kRowThreads, 8)
    breadcrumbs_long_kernel(const Table<RowInfo> table, const double* weights, const int64_t length) {
  TASKARITH_SHARED(unsigned, counts, [kBins]);
  TASKARITH_DYNAMIC_SHARED(Band, bands);  // [T]
  for_each_span(table, [&](const RowSpan& span) {
    with_storage(span.tensor.storage,
                 [&](auto zero) { merge_row<decltype(zero)>(span, table.width - 2, weights, length, counts, bands); });
  });
}

constexpr int kPer = 16;  // entries of a row that a thread holds

// A row that fits in the registers of kBlock threads. What is read again to be added comes from the caches.
template <int kBlock, class T>
__device__ __forceinline__ void merge_short_row(const RowSpan& span, int64_t tasks, const double* weights,
                                                int64_t length) {
  const RowInfo& row = span.tensor.info;
  const int64_t begin = span.begin * row.size;
  const T* base = span.at<const T>(1) + begin;
  const int ranks[2] = {row.removed, row.removed + row.kept};
  double sum[kPer];
#pragma unroll
  for (int j = 0; j < kPer; ++j) {
    const int i = threadIdx.x + j * kBlock;
    sum[j] = i < row.size ? to_float(base[i]) : 0.0f;
  }
#pragma unroll 1
  for (int64_t t = 0; t < tasks; ++t) {
    const T* finetuned = span.at<const T>(2 + t) + begin;
    const auto bits_of = [&](int i) { return ordered_magnitude(to_float(finetuned[i]) - to_float(base[i])); };
    uint32_t bits[kPer];
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = threadIdx.x + j * kBlock;
      bits[j] = i < row.size ? bits_of(i) : 0;
    }
    Cut cuts[2];
    find_cuts<kBlock>(row.size, ranks, bits, bits_of, cuts);
    const double weight = __ldg(weights + t * length + span.tensor.index);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = threadIdx.x + j * kBlock;
      if (i < row.size && cuts[1].holds(bits[j], i) && !cuts[0].holds(bits[j], i))
        sum[j] = add_weighted_delta(sum[j], weight, to_float(finetuned[i]), to_float(base[i]));
    }
  }
#pragma unroll
  for (int j = 0; j < kPer; ++j) {
    const int i = threadIdx.x + j * kBlock;
    if (i < row.size) span.at<T>(0)[begin + i] = from_float<T>(static_cast<float>(sum[j]));
  }
}

template <int kBlock>
__global__ void __launch_bounds__(kBlock)
    breadcrumbs_kernel(const Table<RowInfo> table, const double* weights, const int64_t length) {
  for_each_span(table, [&](const RowSpan& span) {
    with_storage(span.tensor.storage,
                 [&](auto zero) { merge_short_row<kBlock, decltype(zero)>(span, table.width - 2, weights, length); });
  });
}

// Tensors by the number of threads that hold one of their rows; the last takes rows of any length.
constexpr int kSizes = 4;
constexpr int64_t kLongest[kSizes - 1] = {32 * kPer, 64 * kPer, 256 * kPer};

int size_class(int64_t row) {
  int c = 0;
  while (c < kSizes - 1 && row > kLongest[c]) ++c;
  return c;
}

TensorList breadcrumbs_cuda(TensorList base, TensorList finetuned, Tensor weights, std::vector<int64_t> removed,
                            std::vector<int64_t> kept) {
  const int64_t tasks = check_breadcrumbs(base, finetuned, weights, removed, kept);
  STD_TORCH_CHECK(tasks <= kMaxTasks, "breadcrumbs: at most ", kMaxTasks, " tasks on a GPU, got ", tasks);
  check_device("breadcrumbs", base, weights);
  check_device("breadcrumbs", finetuned, weights);
  const Launcher launcher("breadcrumbs", weights);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  weights = torch::stable::contiguous(weights);
  TensorList out = empty_like_each(base);
  std::vector<TensorTable<RowInfo>> classes(kSizes, TensorTable<RowInfo>(1));
  for (size_t i = 0; i < base.size(); ++i) {
    const int64_t size = row_size(base[i]);
    STD_TORCH_CHECK(size < kMaxRow, "breadcrumbs: rows on a GPU have less than 2^31 entries, got ", size);
    classes[size_class(size)].add(size ? base[i].numel() / size : 0, base[i].scalar_type(), static_cast<int64_t>(i),
                                  task_pointers(out[i].mutable_data_ptr(), base, finetuned, i), {},
                                  {static_cast<int>(size), static_cast<int>(removed[i]), static_cast<int>(kept[i]), 0});
  }
  const double* factors = weights.const_data_ptr<double>();
  const int64_t length = static_cast<int64_t>(base.size());
  for (int c = 0; c < kSizes; ++c) {
    if (classes[c].chunks() == 0) continue;
    const Table<RowInfo> table = classes[c].view(launcher, weights);
    const auto launch = [&](auto* kernel, int block, int64_t blocks, size_t shared) {
      const int64_t grid = std::min<int64_t>(table.chunks, launcher.multiprocessors() * blocks);
      launcher.launch(kernel, grid, block, shared, table, factors, length);
    };
    if (c == 0)
      launch(breadcrumbs_kernel<32>, 32, 32, 0);
    else if (c == 1)
      launch(breadcrumbs_kernel<64>, 64, 16, 0);
    else if (c == 2)
      launch(breadcrumbs_kernel<256>, 256, 4, 0);
    else
      launch(breadcrumbs_long_kernel, kRowThreads, 16, tasks * sizeof(Band));
  }
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("breadcrumbs", TORCH_BOX(&breadcrumbs_cuda)); }

}  // namespace
}  // namespace taskarith
