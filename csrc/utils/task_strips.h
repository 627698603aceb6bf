// Lists of tensors of a base and T tasks, read strip by strip as floats: what the elementwise kernels loop over.
#pragma once

#include <algorithm>
#include <vector>

#include "utils/check.h"
#include "utils/huge_pages.h"
#include "utils/parallel.h"

namespace taskarith {

constexpr int64_t kTaskBlock = 16384;  // elements a work item; fixed, so that no result depends on the threads
constexpr int64_t kTaskStrip = 512;    // elements that stay in the first-level cache while the tasks pass over them

// Owns what a kernel reads: contiguous, finetuned task-major.
struct TaskLists {
  TensorList base, finetuned;
  int64_t tasks;

  TaskLists(const TensorList& b, const TensorList& f, int64_t t)
      : base(contiguous(b)), finetuned(contiguous(f)), tasks(t) {}

  int64_t length() const { return static_cast<int64_t>(base.size()); }
  ScalarType type(int64_t tensor) const { return base[tensor].scalar_type(); }
  const Tensor& task(int64_t t, int64_t tensor) const { return finetuned[t * length() + tensor]; }

  std::vector<int64_t> numels() const {
    std::vector<int64_t> out;
    for (const Tensor& b : base) out.push_back(b.numel());
    return out;
  }
};

// One thread's window: a strip of the base and of every task as floats, in place or converted.
class StripReader {
 public:
  explicit StripReader(const TaskLists& lists)
      : lists_(lists), buffer_((lists.tasks + 1) * kTaskStrip), finetuned_(lists.tasks) {}

  void read(int64_t tensor, int64_t begin, int64_t n) {
    const ScalarType type = lists_.type(tensor);
    base_ = load_block(lists_.base[tensor].const_data_ptr(), type, begin, n, buffer_.data());
    for (int64_t t = 0; t < lists_.tasks; ++t)
      finetuned_[t] =
          load_block(lists_.task(t, tensor).const_data_ptr(), type, begin, n, &buffer_[(t + 1) * kTaskStrip]);
  }

  const float* base() const { return base_; }
  const float* const* finetuned() const { return finetuned_.data(); }  // [T]

 private:
  const TaskLists& lists_;
  std::vector<float> buffer_;
  const float* base_ = nullptr;
  std::vector<const float*> finetuned_;
};

// f(reader, tensor, begin, n) for every strip; `begin` is a multiple of kTaskStrip.
template <class F>
void for_each_strip(const TaskLists& lists, const F& f) {
  const std::vector<Block> blocks = cut_into_blocks(lists.numels(), kTaskBlock);
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    StripReader reader(lists);
    for (int64_t j = first; j < last; ++j)
      for (int64_t s = 0; s < blocks[j].size; s += kTaskStrip) {
        const int64_t begin = blocks[j].begin + s, n = std::min(kTaskStrip, blocks[j].size - s);
        reader.read(blocks[j].tensor, begin, n);
        f(reader, blocks[j].tensor, begin, n);
      }
  });
}

// Uninitialized results like `base`.
inline TensorList empty_like_list(const TensorList& base) {
  TensorList out;
  for (const Tensor& b : base) {
    out.push_back(torch::stable::empty_like(b));
    advise_huge_pages(out.back().mutable_data_ptr(), b.numel() * element_size(b.scalar_type()));
  }
  return out;
}

// compute(float* out) writes n floats, which go to `target` from element `begin` on.
template <class F>
void write_strip(Tensor& target, int64_t begin, int64_t n, const F& compute) {
  if (target.scalar_type() == ScalarType::Float) {
    compute(static_cast<float*>(target.mutable_data_ptr()) + begin);
    return;
  }
  alignas(64) float buffer[kTaskStrip];
  compute(buffer);
  store_block(buffer, target.mutable_data_ptr(), target.scalar_type(), begin, n);
}

// A float64 table [T, L] as one run of T numbers a tensor.
inline std::vector<std::vector<double>> weights_by_tensor(const Tensor& weights, int64_t tasks, int64_t length) {
  const Tensor table = torch::stable::contiguous(weights);
  const double* w = table.const_data_ptr<double>();
  std::vector<std::vector<double>> out(length, std::vector<double>(tasks));
  for (int64_t t = 0; t < tasks; ++t)
    for (int64_t i = 0; i < length; ++i) out[i][t] = w[t * length + i];
  return out;
}

}  // namespace taskarith
