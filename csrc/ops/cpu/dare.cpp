#include "ops/dare.h"

#include "math/keep_words.h"
#include "math/kept_sum.h"
#include "utils/task_strips.h"

namespace taskarith {
namespace {

constexpr int64_t kWords = kTaskStrip / 64;

TensorList dare_cpu(TensorList base, TensorList finetuned, Tensor weights, Tensor streams, int64_t threshold,
                    Tensor begins) {
  const int64_t tasks = check_dare(base, finetuned, weights, streams, threshold, begins);
  const TaskLists x(base, finetuned, tasks);
  const std::vector<std::vector<double>> w = weights_by_tensor(weights, tasks, x.length());
  streams = torch::stable::contiguous(streams);
  begins = torch::stable::contiguous(begins);
  const int64_t* firsts = begins.const_data_ptr<int64_t>();
  const int64_t* keys = streams.const_data_ptr<int64_t>();
  const uint32_t last = static_cast<uint32_t>(threshold - 1);
  TensorList out = empty_like_list(x.base);
  for_each_strip(x, [&](const StripReader& strip, int64_t tensor, int64_t begin, int64_t n) {
    thread_local std::vector<uint64_t> words;
    words.resize(tasks * kWords);
    for (int64_t t = 0; t < tasks; ++t)
      keep_words(static_cast<uint64_t>(keys[t * x.length() + tensor]), firsts[tensor] + begin, (n + 63) / 64, last,
                 &words[t * kWords]);
    const KeptDeltas kept{strip.base(), strip.finetuned(), w[tensor].data(), tasks, words.data(), kWords};
    write_strip(out[tensor], begin, n, [&](float* target) { kept_sum(kept, n, target); });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("dare", TORCH_BOX(&dare_cpu)); }

}  // namespace
}  // namespace taskarith
