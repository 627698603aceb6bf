#include "ops/breadcrumbs.h"

#include <memory>

#include "math/band_select.h"
#include "math/kept_sum.h"
#include "utils/prefetch.h"
#include "utils/task_strips.h"
#include "utils/work_queue.h"

namespace taskarith {
namespace {

constexpr int64_t kItem = 4096;  // elements of the rows done together: they stay in the second-level cache with 8 tasks

// Whole rows of one tensor, one after the other.
struct Rows {
  int64_t tensor, begin, count, size;
};

struct Worker {
  std::unique_ptr<StripReader> strips;
  std::vector<BandGuess> guesses;  // [T]
  std::vector<int32_t> bits;       // magnitudes of one row
  std::vector<uint64_t> row;       // the row's mask
  std::vector<uint64_t> words;     // [T, stride]: the item's masks
};

double fill_row(const TaskLists& x, int64_t t, int64_t tensor, int64_t begin, int64_t n, int32_t* bits) {
  alignas(64) float base[kTaskStrip], finetuned[kTaskStrip];
  const ScalarType type = x.type(tensor);
  const int64_t step = type == ScalarType::Float ? n : kTaskStrip;  // floats are read in place
  double sum = 0;
  if (type == ScalarType::Float && n <= kItem)  // the next row arrives while this one is searched
    prefetch_floats(static_cast<const float*>(x.task(t, tensor).const_data_ptr()) + begin + n, n);
  for (int64_t s = 0; s < n; s += step) {
    const int64_t m = std::min(step, n - s);
    const float* b = load_block(x.base[tensor].const_data_ptr(), type, begin + s, m, base);
    const float* f = load_block(x.task(t, tensor).const_data_ptr(), type, begin + s, m, finetuned);
    sum += fill_row(f, b, bits + s, m);
  }
  return sum;
}

void select_rows(const TaskLists& x, const Rows& rows, int64_t removed, int64_t kept, int64_t stride, Worker& worker) {
  worker.words.assign(x.tasks * stride, 0);
  worker.guesses.resize(x.tasks);
  worker.bits.resize(rows.size);
  worker.row.resize((rows.size + 63) / 64);
  for (int64_t r = 0; r < rows.count; ++r)
    for (int64_t t = 0; t < x.tasks; ++t) {
      const double sum = fill_row(x, t, rows.tensor, rows.begin + r * rows.size, rows.size, worker.bits.data());
      select_band(worker.bits.data(), rows.size, sum, removed, kept, worker.guesses[t], worker.row.data());
      place_bits(worker.row.data(), rows.size, &worker.words[t * stride], r * rows.size);
    }
}

std::vector<Rows> cut_into_rows(const TensorList& base) {
  std::vector<Rows> items;
  for (int64_t i = 0; i < static_cast<int64_t>(base.size()); ++i) {
    const int64_t size = row_size(base[i]), step = size ? std::max<int64_t>(1, kItem / size) * size : 1;
    for (int64_t begin = 0; begin < base[i].numel(); begin += step)
      items.push_back({i, begin, std::min(step, base[i].numel() - begin) / size, size});
  }
  return items;
}

TensorList breadcrumbs_cpu(TensorList base, TensorList finetuned, Tensor weights, std::vector<int64_t> removed,
                           std::vector<int64_t> kept) {
  const int64_t tasks = check_breadcrumbs(base, finetuned, weights, removed, kept);
  const TaskLists x(base, finetuned, tasks);
  const std::vector<std::vector<double>> w = weights_by_tensor(weights, tasks, x.length());
  const std::vector<Rows> items = cut_into_rows(x.base);
  TensorList out = empty_like_list(x.base);
  run_queue<Worker>(static_cast<int64_t>(items.size()), [&](Worker& worker, int64_t item) {
    const Rows& rows = items[item];
    const int64_t numel = rows.count * rows.size, stride = (numel + 63) / 64 + 1;
    select_rows(x, rows, removed[rows.tensor], kept[rows.tensor], stride, worker);
    if (!worker.strips) worker.strips = std::make_unique<StripReader>(x);
    for (int64_t s = 0; s < numel; s += kTaskStrip) {
      const int64_t n = std::min(kTaskStrip, numel - s);
      worker.strips->read(rows.tensor, rows.begin + s, n);
      const KeptDeltas deltas{worker.strips->base(),        worker.strips->finetuned(),
                              w[rows.tensor].data(),        tasks,
                              worker.words.data() + s / 64, stride};
      write_strip(out[rows.tensor], rows.begin + s, n, [&](float* target) { kept_sum(deltas, n, target); });
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("breadcrumbs", TORCH_BOX(&breadcrumbs_cpu)); }

}  // namespace
}  // namespace taskarith
