#include "ops/tall_mask.h"

#include "math/tall_mask.h"
#include "utils/task_strips.h"

namespace taskarith {
namespace {

constexpr int64_t kWords = kTaskStrip / 64;

TensorList tall_mask_cpu(TensorList base, TensorList finetuned, Tensor lambdas) {
  const int64_t tasks = check_tall_mask("tall_mask", base, finetuned, lambdas);
  const TaskLists x(base, finetuned, tasks);
  lambdas = torch::stable::contiguous(lambdas);
  const double* lambda = lambdas.const_data_ptr<double>();
  TensorList out;
  for (const Tensor& b : x.base) out.push_back(torch::stable::empty({tasks, packed_size(b.numel())}, ScalarType::Byte));
  for_each_strip(x, [&](const StripReader& strip, int64_t tensor, int64_t begin, int64_t n) {
    thread_local std::vector<uint64_t> words;
    words.resize(tasks * kWords);
    alignas(64) double sums[kTaskStrip];
    tall_words({strip.base(), strip.finetuned(), lambda, tasks, sums, words.data(), kWords}, n);
    uint8_t* target = out[tensor].mutable_data_ptr<uint8_t>();
    for (int64_t t = 0; t < tasks; ++t)  // the bytes of a word in memory are those of the mask: little-endian machines
      std::memcpy(target + t * packed_size(x.base[tensor].numel()) + begin / 8, &words[t * kWords], packed_size(n));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("tall_mask", TORCH_BOX(&tall_mask_cpu)); }

}  // namespace
}  // namespace taskarith
