// Work over lists of tensors, cut into fixed blocks: the cut does not depend on the number of threads, so neither
// do the bytes of a result.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace taskarith {

struct Block {
  int64_t tensor;  // index in the list
  int64_t begin;   // first element
  int64_t size;    // elements
};

inline std::vector<Block> cut_into_blocks(const std::vector<int64_t>& numels, int64_t block_size) {
  std::vector<Block> blocks;
  for (int64_t i = 0; i < static_cast<int64_t>(numels.size()); ++i)
    for (int64_t b = 0; b < numels[i]; b += block_size) blocks.push_back({i, b, std::min(block_size, numels[i] - b)});
  return blocks;
}

// f(begin, end) over ranges of [0, count), on torch's threads. Ranges differ with the thread count; items do not.
template <class F>
void parallel_ranges(int64_t count, const F& f) {
  if (count > 0) torch::stable::parallel_for(0, count, 1, f);
}

}  // namespace taskarith
