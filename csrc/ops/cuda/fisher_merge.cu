#include "math/fisher_merge.h"
#include "ops/fisher_merge.h"
#include "utils/tensor_table.cuh"

namespace taskarith {
namespace {

constexpr int W = 4;  // of eight, the sums in double would leave the registers

struct Fishers {
  const double *shares, *factors;  // [T]
  const uint64_t* storages;        // [T, L]: of the Fisher information
  double least, plus;
};

// Pointers: the result, T models, T of Fisher information.
template <class T>
__device__ __forceinline__ void merge_vector(const Span<>& span, int64_t tasks, int64_t length, const Fishers& x,
                                             int64_t i, int n, bool whole) {
  double needed[W] = {}, mass[W] = {}, total[W] = {}, mean[W] = {};
  for (int64_t t = 0; t < tasks; ++t) {
    float theta[W], fisher[W];
    load_floats<W>(span.at<const T>(1 + t) + i, n, whole, theta);
    with_storage(static_cast<Storage>(__ldg(x.storages + t * length + span.tensor.index)), [&](auto zero) {
      load_floats<W>(span.at<const decltype(zero)>(1 + tasks + t) + i, n, whole, fisher);
    });
    const FisherWeights weights{__ldg(x.shares + t), __ldg(x.factors + t)};
#pragma unroll
    for (int j = 0; j < W; ++j) {
      add_fisher(theta[j], fisher[j], weights, x.least, x.plus, needed[j], mass[j], total[j]);
      mean[j] += weights.share * theta[j];
    }
  }
  float out[W];
#pragma unroll
  for (int j = 0; j < W; ++j) out[j] = static_cast<float>(needed[j] == 0 ? mean[j] : total[j] / mass[j]);
  store_floats<W>(out, n, whole, span.at<T>(0) + i);
}

__global__ void __launch_bounds__(kThreads, 3)
    fisher_merge_kernel(const Table<> table, const int64_t tasks, const Fishers x) {
  for_each_span(table, [&](const Span<>& span) {
    with_storage(span.tensor.storage, [&](auto zero) {
      for_each_vector<W>(span, [&](int64_t i, int n, auto whole) {
        merge_vector<decltype(zero)>(span, tasks, table.tensors, x, i, n, whole);
      });
    });
  });
}

TensorList fisher_merge_cuda(TensorList finetuned, TensorList fishers, Tensor shares, Tensor factors, double floor,
                             bool add) {
  constexpr const char* kOp = "fisher_merge";
  const int64_t tasks = check_fisher_merge(finetuned, fishers, shares, factors);
  for (const TensorList& list : {finetuned, fishers, TensorList{factors}}) check_device(kOp, list, shares);
  const Launcher launcher(kOp, shares);
  finetuned = contiguous(finetuned);
  fishers = contiguous(fishers);
  shares = torch::stable::contiguous(shares);
  factors = torch::stable::contiguous(factors);
  const size_t length = finetuned.size() / tasks;
  TensorList out = empty_like_each(TensorList(finetuned.begin(), finetuned.begin() + length));
  TensorTable<> tensors;
  for (size_t i = 0; i < length; ++i) {
    std::vector<const void*> pointers{out[i].mutable_data_ptr()};
    for (const TensorList* list : {&finetuned, &fishers})
      for (size_t j = i; j < list->size(); j += length) pointers.push_back((*list)[j].const_data_ptr());
    tensors.add(out[i].numel(), out[i].scalar_type(), static_cast<int64_t>(i), pointers);
  }
  const Table<> table = tensors.view(launcher, shares);
  std::vector<uint64_t> words;
  for (const Tensor& f : fishers) words.push_back(static_cast<uint64_t>(storage_of(f.scalar_type())));
  const Tensor storages = upload(launcher, shares, words);
  const Fishers x{shares.const_data_ptr<double>(), factors.const_data_ptr<double>(),
                  static_cast<const uint64_t*>(storages.const_data_ptr()), add ? 0 : floor, add ? floor : 0};
  launch_over(launcher, table.chunks, fisher_merge_kernel, table, tasks, x);
  return out;
}

TASKARITH_CUDA_LIBRARY(m) { m.impl("fisher_merge", TORCH_BOX(&fisher_merge_cuda)); }

}  // namespace
}  // namespace taskarith
