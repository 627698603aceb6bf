#include "ops/ties_merge.h"
#include "utils/block_reduce.cuh"
#include "utils/ties_kept.cuh"

namespace taskarith {
namespace {

using TiesSpan = Span<SegmentInfo>;
using TiesTable = Table<SegmentInfo>;

struct Rules {
  Trim trim;
  const double* shares;  // [T], see add_vote; null for the votes that take none
  double scale;
  double undecided;  // the sign elected where the vote is zero
  bool mean;
  // What depends on the whole model, null if nothing does. tally: the sum of the elected signs, and whether a zero vote
  // mattered; mattered: the same of each chunk.
  unsigned long long* tally;
  uint8_t* mattered;
  bool again;  // merge the chunks where it mattered once more, with the sign of the majority
};

struct Tally {
  int signs = 0;
  bool mattered = false;
};

// Both signs' totals run beside the vote, so every delta is read once, in the order of the tasks.
template <Combine C, int W>
struct Totals {
  double vote[W] = {}, plus[W] = {}, minus[W] = {};
  unsigned counts[W] = {};  // of deltas above zero, and in the upper half below

  template <Elect E>
  __device__ __forceinline__ void add(const double (&deltas)[W], double share) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      vote[j] = add_vote<E>(vote[j], deltas[j], share);
      plus[j] = add_agreeing<C>(plus[j], deltas[j], 1.0);
      minus[j] = add_agreeing<C>(minus[j], deltas[j], -1.0);
      counts[j] += deltas[j] > 0 ? 1 : deltas[j] < 0 ? 1u << 16 : 0;
    }
  }

  // The merged delta of element j.
  __device__ __forceinline__ double finish(int j, double undecided, bool mean, Tally& tally) const {
    const double sign = elected_sign(vote[j], undecided);
    const double total = sign > 0 ? plus[j] : sign < 0 ? minus[j] : 0.0;
    const double count = sign > 0 ? counts[j] & 0xFFFF : counts[j] >> 16;
    tally.signs += static_cast<int>(elected_sign(vote[j], 0.0));
    tally.mattered |= vote[j] == 0 && total != 0;
    if (C == Combine::kSum && mean) return merged_delta<Combine::kMean>(total, count, sign);
    return merged_delta<C>(total, count, sign);
  }
};

template <Elect E, Combine C, class T>
__device__ __forceinline__ Tally merge_span(const TiesSpan& span, const Rules& x, double undecided) {
  constexpr int kGroup = 2;
  constexpr int W = 4;  // eight half-precision values at once take too many registers
  Tally tally;
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    float base[W];
    load_floats<W>(span.at<const T>(1) + i, n, whole, base);
    Totals<C, W> totals;
#pragma unroll 1
    for (int64_t first = 0; first < x.trim.tasks; first += kGroup) {
      float finetuned[kGroup][W];  // all on their way before the first is used
#pragma unroll
      for (int g = 0; g < kGroup; ++g)
        if (first + g < x.trim.tasks) load_floats<W>(span.at<const T>(2 + first + g) + i, n, whole, finetuned[g]);
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const int64_t t = first + g;
        if (t >= x.trim.tasks) break;
        double deltas[W];
        kept_deltas<W>(span.tensor.info, x.trim, t, i, n, base, finetuned[g], deltas);
        totals.template add<E>(deltas, E == Elect::kMass || E == Elect::kCount ? 1.0 : __ldg(x.shares + t));
      }
    }
#pragma unroll
    for (int j = 0; j < W; ++j)
      base[j] = static_cast<float>(base[j] + x.scale * totals.finish(j, undecided, x.mean, tally));
    store_floats<W>(base, n, whole, span.at<T>(0) + i);
  });
  return tally;
}

// Adds a block's tally; integers, so the order does not show.
__device__ __forceinline__ void add_tally(const Rules& x, const Tally& mine, int64_t chunk) {
  const int signs = warp_sum(mine.signs), mattered = __syncthreads_or(mine.mattered);
  if (threadIdx.x % 32 == 0 && signs != 0) atomicAdd(x.tally, static_cast<unsigned long long>(int64_t{signs}));
  if (threadIdx.x != 0) return;
  x.mattered[chunk] = mattered ? 1 : 0;
  if (mattered) atomicOr(x.tally + 1, 1ull);
}

// C is kSum for means, too.
template <Elect E, Combine C>
__global__ void __launch_bounds__(kThreads, 2) ties_merge_kernel(const TiesTable table, const Rules x) {
  double undecided = x.undecided;
  if (x.again) {
    const int64_t majority = static_cast<int64_t>(*x.tally);
    if (majority > 0) return;
    // With no majority either, the published code takes the negative deltas (its "not positive" branch), and 0 for max.
    undecided = majority < 0 || C != Combine::kMax ? -1.0 : 0.0;
  }
  for_each_span(table, [&](const TiesSpan& span) {
    if (x.again && !x.mattered[span.chunk]) return;
    Tally tally;
    with_storage(span.tensor.storage, [&](auto zero) { tally = merge_span<E, C, decltype(zero)>(span, x, undecided); });
    if (x.tally && !x.again) add_tally(x, tally, span.chunk);
  });
}

// The sum of this thread's squared kept deltas of one task.
template <class T>
__device__ __forceinline__ double sum_squares(const TiesSpan& span, const Trim& trim, int64_t t) {
  constexpr int W = 16 / sizeof(T);
  double sum = 0;
  for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
    float base[W];
    float finetuned[W];
    double deltas[W];
    load_floats<W>(span.at<const T>(1) + i, n, whole, base);
    load_floats<W>(span.at<const T>(2 + t) + i, n, whole, finetuned);
    kept_deltas<W>(span.tensor.info, trim, t, i, n, base, finetuned, deltas);
#pragma unroll
    for (int j = 0; j < W; ++j) sum += deltas[j] * deltas[j];
  });
  return sum;
}

// partial [chunks, T]
__global__ void __launch_bounds__(kThreads)
    ties_square_sums_kernel(const TiesTable table, const Trim trim, double* partial) {
  for_each_span(table, [&](const TiesSpan& span) {
    for (int64_t t = 0; t < trim.tasks; ++t) {
      double sum[1];
      with_storage(span.tensor.storage, [&](auto zero) { sum[0] = sum_squares<decltype(zero)>(span, trim, t); });
      block_sum<kThreads>(sum);
      if (threadIdx.x == 0) partial[span.chunk * trim.tasks + t] = sum[0];
    }
  });
}

// out[t] = start[t] + the chunks' sums or, without a start, one over them: the task's share. A block a task.
__global__ void __launch_bounds__(kThreads)
    add_squares_kernel(const double* partial, int64_t chunks, int64_t tasks, const double* start, double* out) {
  for (int64_t t = blockIdx.x; t < tasks; t += gridDim.x) {
    double sum[1] = {0};
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) sum[0] += partial[chunk * tasks + t];
    block_sum<kThreads>(sum);
    if (threadIdx.x == 0) out[t] = start ? start[t] + sum[0] : sum[0] > 0 ? 1 / sum[0] : 0;
  }
}

template <Elect E>
auto kernel_of(Combine combine) {
  return combine == Combine::kMax ? ties_merge_kernel<E, Combine::kMax> : ties_merge_kernel<E, Combine::kSum>;
}

auto kernel_of(Elect elect, Combine combine) {
  if (elect == Elect::kMass) return kernel_of<Elect::kMass>(combine);
  if (elect == Elect::kCount) return kernel_of<Elect::kCount>(combine);
  return elect == Elect::kNormFrac ? kernel_of<Elect::kNormFrac>(combine) : kernel_of<Elect::kNormMass>(combine);
}

// The checked arguments on their device, and the outputs unless `reads_only`.
struct Arguments {
  TensorList base, finetuned, out;
  Tensor thresholds, cutoffs;
  Trim trim;
  Launcher launcher;
  TensorTable<SegmentInfo> tensors;
  TiesTable table;

  Arguments(const Arguments&) = delete;
  Arguments(const char* op, const TensorList& b, const TensorList& f, const Tensor& limits, const Tensor& ends,
            const std::string& zero_sign, const std::string& scope, bool reads_only)
      : base(contiguous(b)),
        finetuned(contiguous(f)),
        thresholds(torch::stable::contiguous(limits)),
        cutoffs(torch::stable::contiguous(ends)),
        launcher(op, limits) {
    const Segments segments = make_segments("ties_merge", b, scope);
    const int64_t tasks = check_ties_merge(b, f, limits, ends, zero_sign, segments);
    for (const TensorList* list : {&base, &finetuned}) check_device(op, *list, limits);
    check_device(op, {ends}, limits);
    trim = {thresholds.const_data_ptr<float>(), cutoffs.const_data_ptr<int64_t>(), tasks};
    if (!reads_only) out = empty_like_each(base);
    for (size_t i = 0; i < base.size(); ++i)
      tensors.add(base[i].numel(), base[i].scalar_type(), static_cast<int64_t>(i),
                  task_pointers(reads_only ? nullptr : out[i].mutable_data_ptr(), base, finetuned, i), {},
                  segment_info(segments, static_cast<int64_t>(i)));
    table = tensors.view(launcher, thresholds);
  }

  Tensor doubles(int64_t size) const { return torch::stable::new_empty(thresholds, {size}, ScalarType::Double); }

  Tensor square_sums(const double* start) const {
    Tensor partial = doubles(table.chunks * trim.tasks), sums = doubles(trim.tasks);
    double* parts = partial.mutable_data_ptr<double>();
    launch_over(launcher, table.chunks, ties_square_sums_kernel, table, trim, parts);
    launch_over(launcher, trim.tasks, add_squares_kernel, parts, table.chunks, trim.tasks, start,
                sums.mutable_data_ptr<double>());
    return sums;
  }
};

TensorList ties_merge_cuda(TensorList base, TensorList finetuned, Tensor thresholds, Tensor cutoffs, double scale,
                           std::string elect, std::string combine, std::string zero_sign, std::string scope) {
  const Arguments x("ties_merge", base, finetuned, thresholds, cutoffs, zero_sign, scope, false);
  const Elect rule = parse_elect(elect);
  const Combine how = parse_combine(combine);
  Rules rules{x.trim, nullptr, scale, zero_sign == "zero" ? 0.0 : 1.0, how == Combine::kMean, nullptr, nullptr, false};
  Tensor shares = x.doubles(0);
  if (rule == Elect::kNormFrac || rule == Elect::kNormMass) shares = x.square_sums(nullptr);
  rules.shares = shares.const_data_ptr<double>();
  const auto kernel = kernel_of(rule, how);
  if (zero_sign != "global_majority") {
    launch_over(x.launcher, x.table.chunks, kernel, x.table, rules);
    return x.out;
  }
  // A zero vote takes the sign that most coordinates elected. That is known only at the end: chunks in which it matters
  // are merged with +1 first, and once more if the majority turns out otherwise. The device decides.
  Tensor tally = torch::stable::new_zeros(thresholds, {2}, ScalarType::Long);
  Tensor mattered = torch::stable::new_empty(thresholds, {x.table.chunks}, ScalarType::Byte);
  rules.tally = static_cast<unsigned long long*>(tally.mutable_data_ptr());
  rules.mattered = mattered.mutable_data_ptr<uint8_t>();
  launch_over(x.launcher, x.table.chunks, kernel, x.table, rules);
  rules.again = true;
  launch_over(x.launcher, x.table.chunks, kernel, x.table, rules);
  return x.out;
}

TensorList ties_merge_part_cuda(TensorList base, TensorList finetuned, Tensor thresholds, Tensor cutoffs, Tensor shares,
                                double scale, std::string elect, std::string combine, double undecided,
                                std::string scope) {
  const Arguments x("ties_merge_part", base, finetuned, thresholds, cutoffs, "plus", scope, false);
  check_task_sums("ties_merge_part", shares, x.trim.tasks, thresholds);
  check_device("ties_merge_part", {shares}, thresholds);
  Tensor tally = torch::stable::new_zeros(thresholds, {2}, ScalarType::Long);
  Tensor mattered = torch::stable::new_empty(thresholds, {x.table.chunks}, ScalarType::Byte);
  const Combine how = parse_combine(combine);
  const Rules rules{x.trim,
                    shares.const_data_ptr<double>(),
                    scale,
                    undecided,
                    how == Combine::kMean,
                    static_cast<unsigned long long*>(tally.mutable_data_ptr()),
                    mattered.mutable_data_ptr<uint8_t>(),
                    false};
  launch_over(x.launcher, x.table.chunks, kernel_of(parse_elect(elect), how), x.table, rules);
  TensorList out = x.out;
  out.push_back(tally);
  return out;
}

Tensor ties_square_sums_cuda(TensorList base, TensorList finetuned, Tensor thresholds, Tensor cutoffs, Tensor start,
                             std::string scope) {
  const Arguments x("ties_square_sums", base, finetuned, thresholds, cutoffs, "plus", scope, true);
  check_task_sums("ties_square_sums", start, x.trim.tasks, thresholds);
  check_device("ties_square_sums", {start}, thresholds);
  return x.square_sums(start.const_data_ptr<double>());
}

TASKARITH_CUDA_LIBRARY(m) {
  m.impl("ties_merge", TORCH_BOX(&ties_merge_cuda));
  m.impl("ties_merge_part", TORCH_BOX(&ties_merge_part_cuda));
  m.impl("ties_square_sums", TORCH_BOX(&ties_square_sums_cuda));
}

}  // namespace
}  // namespace taskarith
