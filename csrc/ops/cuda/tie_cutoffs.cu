#include "utils/block_reduce.cuh"
#include "utils/magnitudes.cuh"

namespace taskarith {
namespace {

constexpr int64_t kTieChunk = 16384;

struct TieLimit {
  int64_t value, left;
};

struct Ties {
  const TieLimit* limits;  // [T]
  int64_t* equal;          // [chunks, T]: entries equal to the value
  int64_t tasks;
};

__global__ void __launch_bounds__(kThreads, 4) count_ties_kernel(const Table<> table, const Ties x) {
  for (int64_t item = blockIdx.x; item < table.chunks * x.tasks; item += gridDim.x) {
    const Span<> span = span_of(table, item / x.tasks);
    const int64_t t = item % x.tasks;
    const uint32_t value = static_cast<uint32_t>(x.limits[t].value);
    int equal[1] = {0};
    with_storage(span.tensor.storage, [&](auto zero) {
      for_magnitudes<decltype(zero)>(span, t, [&](uint32_t bits) { equal[0] += bits == value; });
    });
    block_sum<kThreads>(equal);
    if (threadIdx.x == 0) x.equal[item] = equal[0];
  }
}

// A block a task; out [2, T].
__global__ void __launch_bounds__(kThreads) tie_cutoffs_kernel(const Table<> table, const Ties x, int64_t* out) {
  for (int64_t t = blockIdx.x; t < x.tasks; t += gridDim.x) {
    const TieLimit limit = x.limits[t];
    int64_t found[1] = {0};
    for (int64_t chunk = threadIdx.x; chunk < table.chunks; chunk += kThreads) found[0] += x.equal[chunk * x.tasks + t];
    block_sum<kThreads>(found);
    int64_t cutoff = 0;
    if (found[0] <= limit.left) {
      cutoff = table.entries[0].numel;
    } else if (limit.left > 0) {
      const Ranked<int64_t> chunk = find_rank<kThreads, 1>(
          limit.left, [&](int64_t c) { return c < table.chunks ? x.equal[c * x.tasks + t] : int64_t{0}; });
      const Span<> span = span_of(table, chunk.index);
      with_storage(span.tensor.storage, [&](auto zero) {
        cutoff = end_of_rank<decltype(zero)>(span, t, static_cast<uint32_t>(limit.value), static_cast<int>(chunk.rank));
      });
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      out[t] = cutoff;
      out[x.tasks + t] = limit.left > found[0] ? limit.left - found[0] : 0;
    }
  }
}

Tensor tie_cutoffs_cuda(Tensor base, TensorList finetuned, std::vector<int64_t> values, std::vector<int64_t> left) {
  const int64_t tasks = check_task_lists("tie_cutoffs", {base}, finetuned);
  STD_TORCH_CHECK(static_cast<int64_t>(values.size()) == tasks && static_cast<int64_t>(left.size()) == tasks,
                  "tie_cutoffs: values and left need T=", tasks, " entries");
  check_device("tie_cutoffs", finetuned, base);
  const Launcher launcher("tie_cutoffs", base);
  base = torch::stable::contiguous(base);
  finetuned = contiguous(finetuned);
  std::vector<const void*> pointers{base.const_data_ptr()};
  for (const Tensor& f : finetuned) pointers.push_back(f.const_data_ptr());
  TensorTable<> tensors(kTieChunk);
  tensors.add(base.numel(), base.scalar_type(), 0, pointers);
  const Table<> table = tensors.view(launcher, base);
  std::vector<uint64_t> words;
  for (int64_t t = 0; t < tasks; ++t)
    for (const int64_t number : {values[t], left[t]}) words.push_back(static_cast<uint64_t>(number));
  const Tensor limits = upload(launcher, base, words);
  const auto numbers = [&](std::initializer_list<int64_t> shape) {
    return torch::stable::new_empty(base, std::vector<int64_t>(shape), ScalarType::Long);
  };
  const Tensor equal = numbers({table.chunks * tasks});
  Tensor out = numbers({2, tasks});
  const Ties x{static_cast<const TieLimit*>(limits.const_data_ptr()), static_cast<int64_t*>(equal.mutable_data_ptr()),
               tasks};
  launch_over(launcher, table.chunks * tasks, count_ties_kernel, table, x);
  launch_over(launcher, tasks, tie_cutoffs_kernel, table, x, static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("tie_cutoffs", TORCH_BOX(&tie_cutoffs_cuda)); }

}  // namespace
}  // namespace taskarith
