// A sparse step on a GPU: one launch folds the scalars of every tensor, one updates all selected entries.
#pragma once

#include "math/stochastic_rounding.h"
#include "utils/selected.cuh"
#include "utils/sparse_step.h"

namespace taskarith {

struct StepInfo {
  uint64_t stream;
  int64_t blocks;
  Form form;
  Storage grad;
  bool compact_grad, master, at_random;
};

// The pointers of a tensor; the rule's states follow.
enum StepPointer : int64_t { kItems, kOffsets, kDone, kParam, kGrad, kMaster, kStates };

// What a tensor's entries need of its step.
template <class Rule>
struct alignas(16) Folded {
  typename Rule::Scalars scalars;
  uint32_t step;
};

namespace {

template <class Rule>
__global__ void __launch_bounds__(kThreads)
    fold_step_kernel(const Table<StepInfo> table, const StepScalars given, const typename Rule::Options options,
                     const int64_t step, Folded<Rule>* folded) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < table.tensors;
       i += int64_t{kThreads} * gridDim.x) {
    const int64_t number = number_of(step, static_cast<const float*>(table.pointers[i * table.width + kDone]));
    folded[i] = {Rule::fold(options, number, given.factor()), static_cast<uint32_t>(number)};
  }
}

// Entries j .. j + 3 of the selected ones.
template <class Rule, class Whole>
__device__ __forceinline__ void step_entries(const Span<StepInfo>& span, const SelectedRange& range,
                                             const Folded<Rule>& folded, int64_t j, int n, Whole whole) {
  constexpr int S = Rule::kNumStates;
  const StepInfo& info = span.tensor.info;
  const Storage storage = info.master ? Storage::kFloat : span.tensor.storage;
  const bool scattered = info.form != Form::kEvery;
  float states[S > 0 ? S : 1][kSelected] = {};
#pragma unroll
  for (int s = 0; s < S; ++s) load_floats<kSelected>(span.at<const float>(kStates + s) + j, n, whole, states[s]);
  int64_t at[kSelected];
  find_entries(range, j, n, whole, at);
  uint32_t grads[kSelected], params[kSelected];
  load_entries(span.at<const void>(kGrad), info.grad, scattered && !info.compact_grad, j, at, n, whole, grads);
  load_entries(span.at<const void>(info.master ? kMaster : kParam), storage, scattered && !info.master, j, at, n, whole,
               params);
  PhiloxBlock random{};
  if (info.at_random) random = philox(static_cast<uint64_t>(j / 8), folded.step, info.stream);
#pragma unroll
  for (int k = 0; k < kSelected; ++k) {
    float state[S > 0 ? S : 1];
#pragma unroll
    for (int s = 0; s < S; ++s) state[s] = states[s][k];
    float p =
        Rule::update(word_to_float(storage, params[k]), word_to_float(info.grad, grads[k]), state, folded.scalars);
#pragma unroll
    for (int s = 0; s < S; ++s) states[s][k] = state[s];
    if (info.master) params[k] = __float_as_uint(p);
    if (info.at_random) {
      const uint32_t half = half_word(random, static_cast<int>(j % 8) + k);
      p = span.tensor.storage == Storage::kBFloat16 ? round_to_bfloat16(p, half) : round_to_float16(p, half);
    }
    grads[k] = float_to_word(span.tensor.storage, p);
  }
#pragma unroll
  for (int s = 0; s < S; ++s) store_floats<kSelected>(states[s], n, whole, span.at<float>(kStates + s) + j);
  if (info.master) store_entries(params, span.at<void>(kMaster), Storage::kFloat, false, j, at, n, whole);
  store_entries(grads, span.at<void>(kParam), span.tensor.storage, scattered, j, at, n, whole);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, 3)
    sparse_step_kernel(const Table<StepInfo> table, const StepScalars given, const Folded<Rule>* folded) {
  if (given.skips()) return;
  for_each_span(table, [&](Span<StepInfo> span) {
    const StepInfo& info = span.tensor.info;
    const SelectedRange range = selected_range(span.at<const uint16_t>(kItems), span.at<const int64_t>(kOffsets),
                                               info.form, info.blocks, span.begin, span.end);
    span.end = range.end;
    for_each_vector<kSelected>(span, [&](int64_t j, int n, auto whole) {
      step_entries<Rule>(span, range, folded[span.tensor.index], j, n, whole);
    });
  });
}

// Updates what the lists say. Rule: Options, Scalars, fold, kNumStates, update.
template <class Rule>
void step_on_gpu(const char* op, const TensorList& params, const StepLists& lists, const StepScalars& given,
                 const std::vector<const std::vector<float*>*>& states, const typename Rule::Options& options) {
  check_device(op, params, params[0]);
  const Launcher launcher(op, params[0]);
  TensorTable<StepInfo> tensors;
  for (size_t i = 0; i < params.size(); ++i) {
    const StepTensor& x = lists.tensors[i];
    const Selection& selection = x.selection;
    std::vector<const void*> pointers{selection.items, selection.offsets, x.done, x.param, x.grad, x.master};
    for (const std::vector<float*>* state : states) pointers.push_back((*state)[i]);
    tensors.add(selection.count, x.param_type, static_cast<int64_t>(i), pointers, {},
                {x.stream, selection.blocks(), form_of(selection), storage_of(x.grad_type), x.compact_grad,
                 x.master != nullptr, x.at_random});
  }
  const Table<StepInfo> table = tensors.view(launcher, params[0]);
  const int64_t words = table.tensors * static_cast<int64_t>(sizeof(Folded<Rule>) / 8);
  const Tensor memory = torch::stable::new_empty(params[0], {words}, ScalarType::Long);
  Folded<Rule>* folded = static_cast<Folded<Rule>*>(memory.mutable_data_ptr());
  launch_over(launcher, (table.tensors + kThreads - 1) / kThreads, fold_step_kernel<Rule>, table, given, options,
              lists.step, folded);
  launch_over(launcher, table.chunks, sparse_step_kernel<Rule>, table, given, folded);
}

}  // namespace
}  // namespace taskarith
