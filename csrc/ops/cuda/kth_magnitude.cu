#include "ops/kth_magnitude.h"
#include "utils/block_reduce.cuh"
#include "utils/magnitudes.cuh"

namespace taskarith {
namespace {

constexpr int64_t kRun = 65536;  // elements a work item, and the size up to which a segment is selected by one block
constexpr uint32_t kInfinity = 0x7F800000u;

// The results [S, T].
struct Results {
  float* thresholds;
  int64_t* cutoffs;
  int64_t tasks;

  __device__ __forceinline__ void store(int64_t segment, int64_t t, uint32_t bits, int64_t cutoff) const {
    thresholds[segment * tasks + t] = bits == kNan ? __uint_as_float(0x7FC00000u) : __uint_as_float(bits);
    cutoffs[segment * tasks + t] = cutoff;
  }
};

// Small segments: rows of a tensor, or a tensor as one row. A chunk of the table is a row.
struct SmallInfo {
  int64_t segment;  // of the first row
  int32_t size, k;
};

template <class T>
__device__ __forceinline__ void select_small(const Span<SmallInfo>& span, int64_t t, const Results& results,
                                             unsigned* counts) {
  const SmallInfo& info = span.tensor.info;
  const int64_t begin = span.begin * info.size;
  const T *base = span.at<const T>(0) + begin, *finetuned = span.at<const T>(1 + t) + begin;
  const auto bits_of = [&](int i) { return ordered_magnitude(to_float(finetuned[i]) - to_float(base[i])); };
  const Cut cut = select_rank<kThreads>(info.size, info.k, bits_of, counts);
  if (threadIdx.x == 0) results.store(info.segment + span.begin, t, info.k > 0 ? cut.value : kInfinity, cut.cutoff);
}

__global__ void __launch_bounds__(kThreads, 4)
    small_segments_kernel(const Table<SmallInfo> table, const Results results) {
  TASKARITH_SHARED(unsigned, counts, [kBins]);
  for (int64_t item = blockIdx.x; item < table.chunks * results.tasks; item += gridDim.x) {
    const Span<SmallInfo> span = span_of(table, item / results.tasks);
    with_storage(span.tensor.storage,
                 [&](auto zero) { select_small<decltype(zero)>(span, item % results.tasks, results, counts); });
  }
}

// Large segments: all blocks count digits of all runs, a block a segment and task looks at the counts.
struct RunInfo {
  int64_t search;    // which large segment
  int64_t position;  // of the tensor's first element, in the segment
};

struct LargeSegment {
  int64_t segment, numel, k;
  int64_t first_chunk, end_chunk;
};

struct Searches {
  const LargeSegment* segments;
  int64_t count, tasks;
  Search* searches;            // [segments, T]
  unsigned long long* counts;  // [segments, T, kBins]
  int64_t* equal;              // [chunks, T]: entries equal to the threshold
};

using Run = Span<RunInfo>;

__global__ void __launch_bounds__(kThreads, 4)
    count_digits_kernel(const Table<RunInfo> table, const Searches x, const int d) {
  TASKARITH_SHARED(unsigned, counts, [kBins]);
  const Digit at = digit(d);
  for (int64_t item = blockIdx.x; item < table.chunks * x.tasks; item += gridDim.x) {
    const Run run = span_of(table, item / x.tasks);
    const int64_t t = item % x.tasks, cell = run.tensor.info.search * x.tasks + t;
    const uint32_t prefix = x.searches[cell].prefix;
    for (int b = threadIdx.x; b < at.bins; b += kThreads) counts[b] = 0;
    __syncthreads();
    with_storage(run.tensor.storage, [&](auto zero) {
      for_magnitudes<decltype(zero)>(run, t, [&](uint32_t bits) {
        if (at.follows(bits, prefix)) atomicAdd(&counts[at.bin(bits)], 1u);
      });
    });
    __syncthreads();
    for (int b = threadIdx.x; b < at.bins; b += kThreads)
      if (counts[b]) atomicAdd(x.counts + cell * kBins + b, static_cast<unsigned long long>(counts[b]));
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) start_kernel(const Searches x) {
  for (int64_t cell = blockIdx.x * int64_t{kThreads} + threadIdx.x; cell < x.count * x.tasks;
       cell += int64_t{kThreads} * gridDim.x)
    x.searches[cell] = {0, x.segments[cell / x.tasks].k, 0};
}

// The digit of every search from its counts, which are zero afterwards.
__global__ void __launch_bounds__(kThreads) choose_digit_kernel(const Searches x, const int d) {
  const Digit at = digit(d);
  for (int64_t cell = blockIdx.x; cell < x.count * x.tasks; cell += gridDim.x) {
    const Search search = x.searches[cell];
    if (search.rank == 0) continue;
    const Search found = with_digit<kThreads>(search, at, x.counts + cell * kBins);
    if (threadIdx.x == 0) x.searches[cell] = found;
    __syncthreads();
  }
}

// Only where ties have to be dropped.
__global__ void __launch_bounds__(kThreads) count_equal_kernel(const Table<RunInfo> table, const Searches x) {
  for (int64_t item = blockIdx.x; item < table.chunks * x.tasks; item += gridDim.x) {
    const Run run = span_of(table, item / x.tasks);
    const int64_t t = item % x.tasks;
    const Search search = x.searches[run.tensor.info.search * x.tasks + t];
    if (search.rank == search.count) continue;
    int equal[1] = {0};
    with_storage(run.tensor.storage, [&](auto zero) {
      for_magnitudes<decltype(zero)>(run, t, [&](uint32_t bits) { equal[0] += bits == search.prefix; });
    });
    block_sum<kThreads>(equal);
    if (threadIdx.x == 0) x.equal[item] = equal[0];
  }
}

__global__ void __launch_bounds__(kThreads)
    finish_kernel(const Table<RunInfo> table, const Searches x, const Results results) {
  for (int64_t cell = blockIdx.x; cell < x.count * x.tasks; cell += gridDim.x) {
    const LargeSegment& segment = x.segments[cell / x.tasks];
    const int64_t t = cell % x.tasks;
    const Search search = x.searches[cell];
    int64_t cutoff = search.rank == 0 ? 0 : segment.numel;
    if (search.rank < search.count) {
      const Ranked<int64_t> chunk = find_rank<kThreads, 1>(search.rank, [&](int64_t c) {
        const int64_t at = segment.first_chunk + c;
        return at < segment.end_chunk ? x.equal[at * x.tasks + t] : int64_t{0};
      });
      __syncthreads();
      const Run run = span_of(table, segment.first_chunk + chunk.index);
      with_storage(run.tensor.storage, [&](auto zero) {
        cutoff =
            run.tensor.info.position + end_of_rank<decltype(zero)>(run, t, search.prefix, static_cast<int>(chunk.rank));
      });
      __syncthreads();
    }
    if (threadIdx.x == 0) results.store(segment.segment, t, search.rank ? search.prefix : kInfinity, cutoff);
  }
}

std::vector<const void*> row_pointers(const TensorList& base, const TensorList& finetuned, int64_t i, int64_t element) {
  const int64_t offset = element * element_size(base[i].scalar_type());
  std::vector<const void*> out{static_cast<const char*>(base[i].const_data_ptr()) + offset};
  for (size_t j = i; j < finetuned.size(); j += base.size())
    out.push_back(static_cast<const char*>(finetuned[j].const_data_ptr()) + offset);
  return out;
}

// The segments by size, in tables.
class Work {
 public:
  Work(const TensorList& base, const TensorList& finetuned, const Segments& segments, const std::vector<int64_t>& k)
      : base_(base), finetuned_(finetuned) {
    const bool global = segments.scope() == Scope::kGlobal;
    for (int64_t i = 0; i < static_cast<int64_t>(base.size()); ++i) {
      const int64_t numel = base[i].numel(), size = global ? numel : segments.segment_size(i);
      if (numel == 0 && segments.scope() == Scope::kRow) continue;
      const int64_t first = segments.at(i, 0).segment;
      if (global)
        add_run(i, 0, numel, 0, segments.at(i, 0).position, segments.numel(), k[0]);
      else if (size <= kRun)
        small.add(size ? numel / size : 1, base[i].scalar_type(), i, row_pointers(base, finetuned, i, 0), {},
                  {first, static_cast<int32_t>(size), static_cast<int32_t>(k[i])});
      else
        for (int64_t row = 0; row < numel / size; ++row) add_run(i, row * size, size, first + row, 0, size, k[i]);
    }
  }

  TensorTable<SmallInfo> small{1};
  TensorTable<RunInfo> runs{kRun};
  std::vector<LargeSegment> large;

 private:
  void add_run(int64_t i, int64_t element, int64_t count, int64_t segment, int64_t position, int64_t numel, int64_t k) {
    if (large.empty() || large.back().segment != segment)
      large.push_back({segment, numel, k, runs.chunks(), runs.chunks()});
    runs.add(count, base_[i].scalar_type(), i, row_pointers(base_, finetuned_, i, element), {},
             {static_cast<int64_t>(large.size()) - 1, position});
    large.back().end_chunk = runs.chunks();
  }

  const TensorList &base_, &finetuned_;
};

void select_large(const Launcher& launcher, Work& work, const Tensor& like, const Results& results) {
  const int64_t count = static_cast<int64_t>(work.large.size()), cells = count * results.tasks;
  if (cells == 0) return;
  const Table<RunInfo> table = work.runs.view(launcher, like);
  std::vector<uint64_t> words(count * sizeof(LargeSegment) / 8);
  std::memcpy(words.data(), work.large.data(), count * sizeof(LargeSegment));
  const auto memory = [&](int64_t bytes) { return torch::stable::new_empty(like, {bytes / 8}, ScalarType::Long); };
  const Tensor segments = upload(launcher, like, words), searches = memory(cells * sizeof(Search));
  const Tensor equal = memory(table.chunks * results.tasks * 8);
  const Tensor counts = torch::stable::new_zeros(like, {cells * kBins}, ScalarType::Long);
  const Searches x{static_cast<const LargeSegment*>(segments.const_data_ptr()),
                   count,
                   results.tasks,
                   static_cast<Search*>(searches.mutable_data_ptr()),
                   static_cast<unsigned long long*>(counts.mutable_data_ptr()),
                   static_cast<int64_t*>(equal.mutable_data_ptr())};
  const int64_t items = table.chunks * results.tasks;
  launch_over(launcher, (cells + kThreads - 1) / kThreads, start_kernel, x);
  for (int d = 0; d < kDigits; ++d) {
    launch_over(launcher, items, count_digits_kernel, table, x, d);
    launch_over(launcher, cells, choose_digit_kernel, x, d);
  }
  launch_over(launcher, items, count_equal_kernel, table, x);
  launch_over(launcher, cells, finish_kernel, table, x, results);
}

std::tuple<Tensor, Tensor> kth_magnitude_cuda(TensorList base, TensorList finetuned, std::vector<int64_t> k,
                                              std::string scope) {
  const Segments segments = make_segments("kth_magnitude", base, scope);
  const int64_t tasks = check_kth_magnitude(base, finetuned, k, segments);
  for (const TensorList* list : {&base, &finetuned}) check_device("kth_magnitude", *list, base[0]);
  const Launcher launcher("kth_magnitude", base[0]);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  Tensor thresholds = torch::stable::new_empty(base[0], {segments.count(), tasks}, ScalarType::Float);
  Tensor cutoffs = torch::stable::new_empty(base[0], {segments.count(), tasks}, ScalarType::Long);
  const Results results{thresholds.mutable_data_ptr<float>(), cutoffs.mutable_data_ptr<int64_t>(), tasks};
  Work work(base, finetuned, segments, k);
  if (work.small.chunks() * tasks > 0) {
    const Table<SmallInfo> table = work.small.view(launcher, base[0]);
    launch_over(launcher, table.chunks * tasks, small_segments_kernel, table, results);
  }
  select_large(launcher, work, base[0], results);
  return {thresholds, cutoffs};
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("kth_magnitude", TORCH_BOX(&kth_magnitude_cuda)); }

}  // namespace
}  // namespace taskarith
