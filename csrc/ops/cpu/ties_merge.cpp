#include "ops/ties_merge.h"

#include <atomic>

#include "math/ties_mass.h"
#include "math/ties_scan.h"
#include "utils/huge_pages.h"
#include "utils/parallel.h"
#include "utils/stream_store.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 16384;  // elements a work item
constexpr int64_t kStrip = 256;    // every buffer of a strip stays in the first-level cache

struct Inputs {
  const Segments& segments;
  int64_t tasks;
  std::vector<ScalarType> types;       // [L]
  std::vector<const void*> base;       // [L]
  std::vector<const void*> finetuned;  // [T * L], task-major
  std::vector<void*> out;              // [L]
  std::vector<uint32_t> thresholds;    // [S, T], magnitude bits
  const int64_t* cutoffs;              // [S, T]

  const void* task(int64_t t, int64_t tensor) const { return finetuned[t * base.size() + tensor]; }
};

struct Rules {
  Elect elect;
  Combine combine;
  double scale;
  double undecided;            // the sign elected where the vote is zero
  std::vector<double> shares;  // [T], see add_vote
};

struct Strip {
  alignas(64) float base[kStrip], finetuned[4][kStrip], out[kStrip];
  alignas(64) double base64[kStrip], vote[kStrip], sign[kStrip], total[kStrip], count[kStrip];
  std::vector<double> deltas;        // [T, kStrip], zero where trimmed
  std::vector<uint32_t> thresholds;  // [T], of the run at hand
  std::vector<float> converted;      // [T, kStrip], for 16-bit storage
  std::vector<const float*> models;  // [T]

  explicit Strip(int64_t tasks) : deltas(tasks * kStrip), thresholds(tasks), converted(tasks * kStrip), models(tasks) {}
};

struct Tally {
  int64_t signs = 0;       // sum of the elected signs
  bool undecided = false;  // some coordinate merged deltas of a sign that was not elected
};

TASKARITH_SIMD void start_strip(const float* __restrict base, double* __restrict base64, double* __restrict vote,
                                double* __restrict total, double* __restrict count, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    base64[i] = base[i];
    vote[i] = total[i] = count[i] = 0;
  }
}

inline __attribute__((always_inline)) double trimmed(float finetuned, float base, double base64, uint32_t threshold) {
  return magnitude_bits(finetuned - base) >= threshold ? static_cast<double>(finetuned) - base64 : 0.0;
}

template <Elect E>
inline __attribute__((always_inline)) void elect_four(const float* const* f, const float* __restrict base,
                                                      const double* __restrict base64, const uint32_t* thresholds,
                                                      const double* shares, double* __restrict deltas,
                                                      double* __restrict vote, int64_t n) {
  const float *f0 = f[0], *f1 = f[1], *f2 = f[2], *f3 = f[3];
  const uint32_t h0 = thresholds[0], h1 = thresholds[1], h2 = thresholds[2], h3 = thresholds[3];
  const double s0 = shares[0], s1 = shares[1], s2 = shares[2], s3 = shares[3];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const double d0 = trimmed(f0[i], base[i], base64[i], h0), d1 = trimmed(f1[i], base[i], base64[i], h1);
    const double d2 = trimmed(f2[i], base[i], base64[i], h2), d3 = trimmed(f3[i], base[i], base64[i], h3);
    deltas[i] = d0, deltas[kStrip + i] = d1, deltas[2 * kStrip + i] = d2, deltas[3 * kStrip + i] = d3;
    vote[i] = add_vote<E>(add_vote<E>(add_vote<E>(add_vote<E>(vote[i], d0, s0), d1, s1), d2, s2), d3, s3);
  }
}

template <Elect E>
inline __attribute__((always_inline)) void elect_one(const float* __restrict f, const float* __restrict base,
                                                     const double* __restrict base64, uint32_t threshold, double share,
                                                     double* __restrict deltas, double* __restrict vote, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    deltas[i] = trimmed(f[i], base[i], base64[i], threshold);
    vote[i] = add_vote<E>(vote[i], deltas[i], share);
  }
}

template <Elect E>
inline __attribute__((always_inline)) void elect_tasks(const float* const* f, int64_t tasks, const float* base,
                                                       const double* base64, const uint32_t* thresholds,
                                                       const double* shares, double* deltas, double* vote, int64_t n) {
  if (tasks == 4) return elect_four<E>(f, base, base64, thresholds, shares, deltas, vote, n);
  for (int64_t t = 0; t < tasks; ++t)
    elect_one<E>(f[t], base, base64, thresholds[t], shares[t], deltas + t * kStrip, vote, n);
}

// Up to four tasks: form and trim the deltas, in a register each, and add their votes in the order of the tasks.
TASKARITH_SIMD void elect_group(Elect rule, const float* const* f, int64_t tasks, const float* base,
                                const double* base64, const uint32_t* thresholds, const double* shares, double* deltas,
                                double* vote, int64_t n) {
  switch (rule) {
    case Elect::kMass:
      return elect_tasks<Elect::kMass>(f, tasks, base, base64, thresholds, shares, deltas, vote, n);
    case Elect::kCount:
      return elect_tasks<Elect::kCount>(f, tasks, base, base64, thresholds, shares, deltas, vote, n);
    case Elect::kNormFrac:
      return elect_tasks<Elect::kNormFrac>(f, tasks, base, base64, thresholds, shares, deltas, vote, n);
    case Elect::kNormMass:
      return elect_tasks<Elect::kNormMass>(f, tasks, base, base64, thresholds, shares, deltas, vote, n);
  }
}

// Signs from votes; returns the sum of those that were elected.
TASKARITH_SIMD int64_t resolve(const double* __restrict vote, double undecided, double* __restrict sign, int64_t n) {
  double sum = 0;  // exact: small integers
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    sign[i] = elected_sign(vote[i], undecided);
    sum += elected_sign(vote[i], 0.0);
  }
  return static_cast<int64_t>(sum);
}

template <Combine C>
inline __attribute__((always_inline)) void combine_tasks(const double* __restrict deltas, int64_t tasks,
                                                         const double* __restrict sign, double* __restrict total,
                                                         double* __restrict count, int64_t n) {
  int64_t t = 0;
  for (; t + 4 <= tasks; t += 4) {
    const double *d0 = deltas + t * kStrip, *d1 = d0 + kStrip, *d2 = d1 + kStrip, *d3 = d2 + kStrip;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const double s = sign[i];
      total[i] = add_agreeing<C>(
          add_agreeing<C>(add_agreeing<C>(add_agreeing<C>(total[i], d0[i], s), d1[i], s), d2[i], s), d3[i], s);
      if constexpr (C == Combine::kMean)
        count[i] = count_agreeing(
            count_agreeing(count_agreeing(count_agreeing(count[i], d0[i], s), d1[i], s), d2[i], s), d3[i], s);
    }
  }
  for (; t < tasks; ++t) {
    const double* d = deltas + t * kStrip;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      total[i] = add_agreeing<C>(total[i], d[i], sign[i]);
      if constexpr (C == Combine::kMean) count[i] = count_agreeing(count[i], d[i], sign[i]);
    }
  }
}

TASKARITH_SIMD void combine_strip(Combine rule, const double* deltas, int64_t tasks, const double* sign, double* total,
                                  double* count, int64_t n) {
  switch (rule) {
    case Combine::kMean:
      return combine_tasks<Combine::kMean>(deltas, tasks, sign, total, count, n);
    case Combine::kSum:
      return combine_tasks<Combine::kSum>(deltas, tasks, sign, total, count, n);
    case Combine::kMax:
      return combine_tasks<Combine::kMax>(deltas, tasks, sign, total, count, n);
  }
}

template <Combine C>
inline __attribute__((always_inline)) bool add_merged(const Strip& x, double scale, float* __restrict out, int64_t n) {
  double undecided = 0;
#pragma omp simd reduction(+ : undecided)
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(x.base64[i] + scale * merged_delta<C>(x.total[i], x.count[i], x.sign[i]));
    undecided += x.vote[i] == 0 && x.total[i] != 0 ? 1.0 : 0.0;
  }
  return undecided != 0;
}

// Returns whether a zero vote mattered: whether deltas of the sign given to it were merged.
TASKARITH_SIMD bool finish_strip(Combine rule, const Strip& x, double scale, float* out, int64_t n) {
  switch (rule) {
    case Combine::kMean:
      return add_merged<Combine::kMean>(x, scale, out, n);
    case Combine::kSum:
      return add_merged<Combine::kSum>(x, scale, out, n);
    default:
      return add_merged<Combine::kMax>(x, scale, out, n);
  }
}

TASKARITH_SIMD double sum_of_squares(const double* __restrict x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

void elect_strip(const Inputs& x, Elect rule, const double* shares, int64_t tensor, int64_t begin, int64_t n,
                 Strip& strip) {
  const ScalarType type = x.types[tensor];
  const float* base = load_block(x.base[tensor], type, begin, n, strip.base);
  start_strip(base, strip.base64, strip.vote, strip.total, strip.count, n);
  for (int64_t t = 0; t < x.tasks; t += 4) {
    const int64_t tasks = std::min<int64_t>(4, x.tasks - t);
    const float* f[4];
    for (int64_t u = 0; u < tasks; ++u) f[u] = load_block(x.task(t + u, tensor), type, begin, n, strip.finetuned[u]);
    elect_group(rule, f, tasks, base, strip.base64, &strip.thresholds[t], shares + t, &strip.deltas[t * kStrip],
                strip.vote, n);
  }
}

// f(begin, size) over the block's runs, in which the segment and every task's threshold stay the same: a threshold
// keeps its ties before the task's cutoff and drops them after it.
template <class F>
void for_runs(const Inputs& x, const Block& block, std::vector<uint32_t>& thresholds, const F& f) {
  const int64_t end = block.begin + block.size;
  for (int64_t begin = block.begin; begin < end;) {
    const Place place = x.segments.at(block.tensor, begin);
    int64_t n = std::min(place.left, end - begin);
    for (int64_t t = 0; t < x.tasks; ++t) {
      const int64_t kept = x.cutoffs[place.segment * x.tasks + t] - place.position;
      if (kept > 0) n = std::min(n, kept);
      const uint32_t threshold = x.thresholds[place.segment * x.tasks + t];
      thresholds[t] = kept > 0 ? threshold : threshold + 1;
    }
    f(begin, n);
    begin += n;
  }
}

template <class F>
void for_strips(const Inputs& x, const Block& block, Strip& strip, const F& f) {
  for_runs(x, block, strip.thresholds, [&](int64_t begin, int64_t size) {
    for (int64_t s = 0; s < size; s += kStrip) f(begin + s, std::min(kStrip, size - s));
  });
}

// Whether the strip was merged here: the paper's rule, on a processor that has the instructions.
bool merge_mass_strip([[maybe_unused]] const Inputs& x, const Rules& rules, [[maybe_unused]] int64_t tensor,
                      [[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t n, [[maybe_unused]] Strip& strip,
                      [[maybe_unused]] Tally& tally) {
  if (rules.elect != Elect::kMass || rules.combine == Combine::kMax) return false;
#if defined(__x86_64__)
  if (!has_avx512()) return false;
  const ScalarType type = x.types[tensor];
  const float* base = load_block(x.base[tensor], type, begin, n, strip.base);
  for (int64_t t = 0; t < x.tasks; ++t)
    strip.models[t] = load_block(x.task(t, tensor), type, begin, n, &strip.converted[t * kStrip]);
  const MassResult result = merge_mass(base, strip.models.data(), x.tasks, strip.thresholds.data(),
                                       rules.combine == Combine::kMean, rules.undecided, rules.scale, strip.out, n);
  tally.signs += result.signs;
  tally.undecided |= result.undecided;
  return true;
#else
  return false;
#endif
}

Tally merge_block(const Inputs& x, const Rules& rules, const Block& block, Strip& strip) {
  Tally tally;
  for_strips(x, block, strip, [&](int64_t begin, int64_t n) {
    if (merge_mass_strip(x, rules, block.tensor, begin, n, strip, tally)) {
      stream_block<kStrip>(strip.out, x.out[block.tensor], x.types[block.tensor], begin, n);
      return;
    }
    elect_strip(x, rules.elect, rules.shares.data(), block.tensor, begin, n, strip);
    tally.signs += resolve(strip.vote, rules.undecided, strip.sign, n);
    combine_strip(rules.combine, strip.deltas.data(), x.tasks, strip.sign, strip.total, strip.count, n);
    tally.undecided |= finish_strip(rules.combine, strip, rules.scale, strip.out, n);
    stream_block<kStrip>(strip.out, x.out[block.tensor], x.types[block.tensor], begin, n);
  });
  return tally;
}

// Adds each task's sum of squared kept deltas to sums [T], block after block.
void add_square_sums(const Inputs& x, const std::vector<Block>& blocks, double* sums) {
  std::vector<double> squares(blocks.size() * x.tasks, 0);
  const std::vector<double> ones(x.tasks, 1);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    Strip strip(x.tasks);
    for (int64_t j = first; j < last; ++j)
      for_strips(x, blocks[j], strip, [&](int64_t begin, int64_t n) {
        elect_strip(x, Elect::kMass, ones.data(), blocks[j].tensor, begin, n, strip);
        for (int64_t t = 0; t < x.tasks; ++t) squares[j * x.tasks + t] += sum_of_squares(&strip.deltas[t * kStrip], n);
      });
  });
  for (size_t i = 0; i < squares.size(); ++i) sums[i % x.tasks] += squares[i];
}

struct Outcome {
  int64_t signs = 0;            // sum of the elected signs
  std::vector<char> undecided;  // of each block
};

Outcome merge_blocks(const Inputs& x, const Rules& rules, const std::vector<Block>& blocks) {
  Outcome outcome{0, std::vector<char>(blocks.size(), 0)};
  std::atomic<int64_t> signs{0};
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    Strip strip(x.tasks);
    for (int64_t j = first; j < last; ++j) {
      const Tally result = merge_block(x, rules, blocks[j], strip);
      signs += result.signs, outcome.undecided[j] = result.undecided;
    }
    stream_fence();
  });
  outcome.signs = signs;
  return outcome;
}

// A zero vote takes the sign that most coordinates elected. That is known only at the end: blocks in which it matters
// are merged with +1 first, and once more if the majority turns out otherwise.
void merge_all(const Inputs& x, Rules rules, bool global_majority) {
  std::vector<Block> blocks = cut_into_blocks(x.segments.numels(), kBlock);
  if (rules.elect == Elect::kNormFrac || rules.elect == Elect::kNormMass) {
    rules.shares.assign(x.tasks, 0);
    add_square_sums(x, blocks, rules.shares.data());
    for (double& s : rules.shares) s = s > 0 ? 1 / s : 0;
  }
  const Outcome first = merge_blocks(x, rules, blocks);
  if (!global_majority || first.signs > 0) return;
  // With no majority either, the published code takes the negative deltas (its "not positive" branch), and 0 for max.
  rules.undecided = first.signs < 0 || rules.combine != Combine::kMax ? -1 : 0;
  std::vector<Block> again;
  for (size_t j = 0; j < blocks.size(); ++j)
    if (first.undecided[j]) again.push_back(blocks[j]);
  merge_blocks(x, rules, again);
}

// The checked arguments, contiguous, and the outputs unless `reads_only`.
struct Arguments {
  Segments segments;
  TensorList base, finetuned, out;
  Tensor thresholds, cutoffs;
  Inputs inputs;

  Arguments(const Arguments&) = delete;
  Arguments(TensorList b, TensorList f, Tensor limits, Tensor ends, const std::string& zero_sign,
            const std::string& scope, bool reads_only)
      : segments(make_segments("ties_merge", b, scope)),
        base(contiguous(b)),
        finetuned(contiguous(f)),
        thresholds(torch::stable::contiguous(limits)),
        cutoffs(torch::stable::contiguous(ends)),
        inputs{segments, check_ties_merge(b, f, limits, ends, zero_sign, segments), {}, {}, {}, {}, {}, nullptr} {
    for (const Tensor& tensor : base) {
      inputs.types.push_back(tensor.scalar_type());
      inputs.base.push_back(tensor.const_data_ptr());
      if (reads_only) continue;
      out.push_back(torch::stable::empty_like(tensor));
      advise_huge_pages(out.back().mutable_data_ptr(), tensor.numel() * element_size(tensor.scalar_type()));
      inputs.out.push_back(out.back().mutable_data_ptr());
    }
    for (const Tensor& tensor : finetuned) inputs.finetuned.push_back(tensor.const_data_ptr());
    const float* values = thresholds.const_data_ptr<float>();
    for (int64_t i = 0; i < thresholds.numel(); ++i) inputs.thresholds.push_back(ordered_magnitude(values[i]));
    inputs.cutoffs = cutoffs.const_data_ptr<int64_t>();
  }
};

TensorList ties_merge_cpu(TensorList base, TensorList finetuned, Tensor thresholds, Tensor cutoffs, double scale,
                          std::string elect, std::string combine, std::string zero_sign, std::string scope) {
  const Arguments x(base, finetuned, thresholds, cutoffs, zero_sign, scope, false);
  merge_all(x.inputs,
            {parse_elect(elect), parse_combine(combine), scale, zero_sign == "zero" ? 0.0 : 1.0,
             std::vector<double>(x.inputs.tasks, 1)},
            zero_sign == "global_majority");
  return x.out;
}

TensorList ties_merge_part_cpu(TensorList base, TensorList finetuned, Tensor thresholds, Tensor cutoffs, Tensor shares,
                               double scale, std::string elect, std::string combine, double undecided,
                               std::string scope) {
  Arguments x(base, finetuned, thresholds, cutoffs, "plus", scope, false);
  check_task_sums("ties_merge_part", shares, x.inputs.tasks, thresholds);
  const double* values = shares.const_data_ptr<double>();
  const Outcome outcome = merge_blocks(x.inputs,
                                       {parse_elect(elect), parse_combine(combine), scale, undecided,
                                        std::vector<double>(values, values + x.inputs.tasks)},
                                       cut_into_blocks(x.segments.numels(), kBlock));
  x.out.push_back(torch::stable::empty({2}, ScalarType::Long));
  int64_t* tally = x.out.back().mutable_data_ptr<int64_t>();
  tally[0] = outcome.signs;
  tally[1] = std::count(outcome.undecided.begin(), outcome.undecided.end(), 1) > 0;
  return x.out;
}

Tensor ties_square_sums_cpu(TensorList base, TensorList finetuned, Tensor thresholds, Tensor cutoffs, Tensor start,
                            std::string scope) {
  const Arguments x(base, finetuned, thresholds, cutoffs, "plus", scope, true);
  check_task_sums("ties_square_sums", start, x.inputs.tasks, thresholds);
  Tensor sums = torch::stable::empty({x.inputs.tasks}, ScalarType::Double);
  std::copy_n(start.const_data_ptr<double>(), x.inputs.tasks, sums.mutable_data_ptr<double>());
  add_square_sums(x.inputs, cut_into_blocks(x.segments.numels(), kBlock), sums.mutable_data_ptr<double>());
  return sums;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) {
  m.impl("ties_merge", TORCH_BOX(&ties_merge_cpu));
  m.impl("ties_merge_part", TORCH_BOX(&ties_merge_part_cpu));
  m.impl("ties_square_sums", TORCH_BOX(&ties_square_sums_cpu));
}

}  // namespace
}  // namespace taskarith
