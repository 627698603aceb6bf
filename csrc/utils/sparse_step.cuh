// A sparse step on a GPU: one launch folds the scalars of every tensor, one updates all selected entries.
#pragma once

#include <type_traits>

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

// The chunk at hand. What is the same for all its threads stays in memory, that is in the first cache: there are too
// few registers for it.
template <class Rule, class P, class G>
struct StepChunk {
  const Span<StepInfo>& span;
  const SelectedRange& range;
  const Folded<Rule>& folded;

  // Entries j .. j + 3 of the selected ones.
  template <class Whole>
  __device__ __forceinline__ void step(int64_t j, int n, Whole whole) const {
    constexpr int S = Rule::kNumStates;
    const bool scattered = range.form != Form::kEvery;
    float state[S > 0 ? S : 1][kSelected] = {}, p[kSelected];
    int64_t at[kSelected];
#pragma unroll
    for (int s = 0; s < S; ++s) load_entries(span.at<const float>(kStates + s), false, j, at, n, whole, state[s]);
    find_entries(range, j, n, whole, at);
    G g[kSelected];
    P rounded[kSelected];
    load_entries(span.at<const G>(kGrad), scattered && !span.tensor.info.compact_grad, j, at, n, whole, g);
    if (span.tensor.info.master) {
      load_entries(span.at<const float>(kMaster), false, j, at, n, whole, p);
    } else {
      load_entries(span.at<const P>(kParam), scattered, j, at, n, whole, rounded);
#pragma unroll
      for (int k = 0; k < kSelected; ++k) p[k] = to_float(rounded[k]);
    }
#pragma unroll
    for (int k = 0; k < kSelected; ++k) {
      float own[S > 0 ? S : 1] = {};
#pragma unroll
      for (int s = 0; s < S; ++s) own[s] = state[s][k];
      p[k] = Rule::update(p[k], to_float(g[k]), own, folded.scalars);
#pragma unroll
      for (int s = 0; s < S; ++s) state[s][k] = own[s];
    }
#pragma unroll
    for (int s = 0; s < S; ++s) store_entries(state[s], span.at<float>(kStates + s), false, j, at, n, whole);
    if (span.tensor.info.master) store_entries(p, span.at<float>(kMaster), false, j, at, n, whole);
    if (span.tensor.info.at_random) round(j, p);
#pragma unroll
    for (int k = 0; k < kSelected; ++k) rounded[k] = from_float<P>(p[k]);
    store_entries(rounded, span.at<P>(kParam), scattered, j, at, n, whole);
  }

  __device__ __forceinline__ void round(int64_t j, float (&p)[kSelected]) const {
    const PhiloxBlock block = philox(static_cast<uint64_t>(j / 8), folded.step, span.tensor.info.stream);
#pragma unroll
    for (int k = 0; k < kSelected; ++k) {
      const uint32_t random = half_word(block, static_cast<int>(j % 8) + k);
      p[k] = std::is_same_v<P, __half> ? round_to_float16(p[k], random) : round_to_bfloat16(p[k], random);
    }
  }
};

template <class Rule>
__global__ void __launch_bounds__(kThreads, 3)
    sparse_step_kernel(const Table<StepInfo> table, const StepScalars given, const Folded<Rule>* folded) {
  if (given.skips()) return;
  for_each_span(table, [&](Span<StepInfo> span) {
    const StepInfo& info = span.tensor.info;
    const SelectedRange range = selected_range(span.at<const uint16_t>(kItems), span.at<const int64_t>(kOffsets),
                                               info.form, info.blocks, span.begin, span.end);
    span.end = range.end;
    with_storage(span.tensor.storage, [&](auto param) {
      with_storage(info.grad, [&](auto grad) {
        using P = decltype(param);
        using G = decltype(grad);
        const StepChunk<Rule, P, G> chunk{span, range, folded[span.tensor.index]};
        for_each_vector<kSelected>(span, [&](int64_t j, int n, auto whole) { chunk.step(j, n, whole); });
      });
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
