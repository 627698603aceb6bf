// Large, uneven items on torch's threads: each thread takes the next item when it is done with its own. Which thread
// computes an item is left open, so the result of an item must depend on the item alone.
#pragma once

#include <algorithm>
#include <atomic>

#include "utils/parallel.h"

namespace taskarith {

// f(worker, item) for every item in [0, count). A Worker is the scratch memory of one thread.
template <class Worker, class F>
void run_queue(int64_t count, const F& f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  parallel_ranges(threads, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      Worker worker;
      for (int64_t item; (item = next.fetch_add(1)) < count;) f(worker, item);
    }
  });
}

}  // namespace taskarith
