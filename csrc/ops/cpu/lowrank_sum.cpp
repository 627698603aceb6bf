#include "ops/lowrank_sum.h"

#include "math/gram_svd.h"
#include "utils/work_queue.h"

namespace taskarith {
namespace {

constexpr int64_t kGroup = 64;     // decompositions whose factors are in memory at once
constexpr int64_t kColumns = 256;  // columns of a result computed by one thread

struct Item {  // of the list
  int64_t m, n, rank;
  ScalarType type;
  const void* base;
  std::vector<const void*> finetuned;  // [T]
  void* out;
  float *left, *right;  // [m, T * rank], [T * rank, n]

  int64_t depth() const { return static_cast<int64_t>(finetuned.size()) * rank; }
};

struct Worker {
  GramSvd svd;
  AlignedBuffer<float> delta, block;
  GemmScratch<float> gemm;
};

TASKARITH_SIMD void subtract(const float* __restrict x, const float* __restrict y, float* __restrict out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] - y[i];
}

bool decompose(Worker& worker, const Item& x, int64_t task, bool certified) {
  constexpr int64_t kStrip = 2048;
  alignas(64) float f[kStrip], b[kStrip];
  const int64_t numel = x.m * x.n;
  float* const delta = worker.delta.reserve(numel);
  for (int64_t i = 0; i < numel; i += kStrip) {
    const int64_t size = std::min(kStrip, numel - i);
    subtract(load_block(x.finetuned[task], x.type, i, size, f), load_block(x.base, x.type, i, size, b), delta + i,
             size);
  }
  const bool ok = worker.svd.decompose(delta, x.m, x.n, x.rank, certified, false).ok;
  if (ok) worker.svd.write_product(x.left + task * x.rank, x.depth(), x.right + task * x.rank * x.n);
  return ok;
}

void multiply(Worker& worker, const Item& x, int64_t first) {
  const int64_t width = std::min(kColumns, x.n - first);
  const bool in_place = x.type == ScalarType::Float;
  float* const out = in_place ? static_cast<float*>(x.out) + first : worker.block.reserve(x.m * width);
  gemm<float>(x.m, width, x.depth(), MatrixView<float>{x.left, x.depth(), 1},
              MatrixView<float>{x.right + first, x.n, 1}, out, in_place ? x.n : width, worker.gemm);
  for (int64_t i = 0; !in_place && i < x.m; ++i) store_block(out + i * width, x.out, x.type, i * x.n + first, width);
}

struct Part {  // one decomposition, or some columns of one result
  int64_t item, index;
};

void run_group(std::vector<Item>& items, int64_t begin, int64_t end, bool certified, AlignedBuffer<float>& factors) {
  int64_t size = 0;
  for (int64_t i = begin; i < end; ++i) size += items[i].depth() * (items[i].m + items[i].n);
  float* next = factors.reserve(size);
  std::vector<Part> tasks, columns;
  for (int64_t i = begin; i < end; ++i) {
    Item& x = items[i];
    x.left = next;
    x.right = next + x.m * x.depth();
    next = x.right + x.n * x.depth();
    for (size_t t = 0; t < x.finetuned.size(); ++t) tasks.push_back({i, static_cast<int64_t>(t)});
    for (int64_t j = 0; j < x.n; j += kColumns) columns.push_back({i, j});
  }
  std::vector<char> ok(tasks.size(), 0);
  run_queue<Worker>(static_cast<int64_t>(tasks.size()), [&](Worker& worker, int64_t j) {
    ok[j] = decompose(worker, items[tasks[j].item], tasks[j].index, certified);
  });
  for (size_t j = 0; j < tasks.size(); ++j)
    STD_TORCH_CHECK(ok[j], "lowrank_sum: finetuned[", tasks[j].index, "][", tasks[j].item,
                    "] - base holds NaN or Inf, or its decomposition did not converge");
  run_queue<Worker>(static_cast<int64_t>(columns.size()),
                    [&](Worker& worker, int64_t j) { multiply(worker, items[columns[j].item], columns[j].index); });
}

TensorList lowrank_sum_cpu(TensorList base, TensorList finetuned, std::vector<int64_t> rank, std::string svd) {
  const bool certified = check_svd_method("lowrank_sum", svd);
  const int64_t tasks = check_lowrank_sum(base, finetuned, rank), count = static_cast<int64_t>(base.size());
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  TensorList out;
  std::vector<Item> items(count);
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& b = base[i];
    out.push_back(torch::stable::empty_like(b));
    if (tasks == 0) torch::stable::zero_(out[i]);
    items[i] = {b.size(0), b.size(1), rank[i], b.scalar_type(), b.const_data_ptr(), {}, out[i].mutable_data_ptr(),
                nullptr,   nullptr};
    for (int64_t t = 0; t < tasks; ++t) items[i].finetuned.push_back(finetuned[t * count + i].const_data_ptr());
  }
  AlignedBuffer<float> factors;
  const int64_t step = std::max<int64_t>(1, kGroup / std::max<int64_t>(tasks, 1));
  for (int64_t i = 0; tasks > 0 && i < count; i += step)
    run_group(items, i, std::min(count, i + step), certified, factors);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("lowrank_sum", TORCH_BOX(&lowrank_sum_cpu)); }

}  // namespace
}  // namespace taskarith
