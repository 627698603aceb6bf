#include "ops/bottom_k_mask.h"

#include <atomic>
#include <mutex>
#include <optional>

#include "math/rank_select.h"
#include "math/score_key.h"
#include "utils/parallel.h"
#include "utils/simd.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 65536;  // entries a work item, a multiple of 64
constexpr int64_t kStrip = 2048;   // keys that stay in the first-level cache
constexpr int64_t kGroup = 64;     // entries of one word of bits
constexpr int64_t kLine = 16;      // floats of a cache line: sampled together, since they are read together
constexpr int64_t kMaxSample = 1 << 18;
constexpr uint32_t kHighest = 0xFFFFFFFFu;

// An excluded entry has key 0, no other has.
struct Views {
  std::vector<const float*> scores;
  std::vector<const uint8_t*> excluded;  // empty: none
  uint32_t flip;                         // all ones where the lowest score is to have the largest key
};

struct Keys {
  alignas(64) uint32_t key[kStrip];
};

TASKARITH_SIMD void order_keys(const float* __restrict scores, int64_t n, uint32_t flip, uint32_t* __restrict keys) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) keys[i] = score_key(scores[i], flip);
}

TASKARITH_SIMD void drop_excluded(const uint8_t* __restrict bits, int64_t n, uint32_t* __restrict keys) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) keys[i] &= ((uint32_t{bits[i / 8]} >> (i % 8)) & 1u) - 1u;
}

void fill_keys(const Views& x, int64_t tensor, int64_t begin, int64_t n, uint32_t* keys) {
  order_keys(x.scores[tensor] + begin, n, x.flip, keys);
  if (!x.excluded.empty()) drop_excluded(x.excluded[tensor] + begin / 8, n, keys);
}

// f(keys, position in the block, size) over one block.
template <class F>
void for_strips(const Views& x, const Block& block, const F& f) {
  Keys keys;
  for (int64_t s = 0; s < block.size; s += kStrip) {
    const int64_t n = std::min(kStrip, block.size - s);
    fill_keys(x, block.tensor, block.begin + s, n, keys.key);
    f(keys.key, s, n);
  }
}

// Keys above the bracket, and keys in it, ends included.
TASKARITH_SIMD void count_group(const uint32_t* __restrict keys, Bracket bracket, int32_t* __restrict counts) {
  int32_t above = 0, within = 0;
#pragma omp simd reduction(+ : above, within)
  for (int64_t i = 0; i < kGroup; ++i) {
    above += keys[i] > bracket.high;
    within += (keys[i] >= bracket.low) & (keys[i] <= bracket.high);
  }
  counts[0] = above;
  counts[1] = within;
}

void scan_keys(const uint32_t* keys, int64_t n, Bracket bracket, BlockScan& scan) {
  for (int64_t i = 0; i < n; i += kGroup) {
    const int64_t size = std::min(kGroup, n - i);
    if (size == kGroup) {
      int32_t counts[2];
      count_group(keys + i, bracket, counts);
      if (counts[1] == 0) {
        scan.counts.above += counts[0];
        continue;
      }
    }
    for (int64_t j = i; j < i + size; ++j) {
      scan.counts.above += keys[j] > bracket.high;
      scan.counts.at_high += keys[j] == bracket.high;
      scan.counts.at_low += keys[j] == bracket.low && bracket.low != bracket.high;
      if (keys[j] > bracket.low && keys[j] < bracket.high) scan.inside.push_back(keys[j]);
    }
  }
}

struct Scan {
  Bracket bracket;
  std::vector<BlockScan> blocks;
  std::atomic<bool> overflow{false};  // more entries in the bracket than memory is spent on
};

void scan_blocks(const Views& x, const std::vector<Block>& blocks, int64_t most, Scan& scan) {
  scan.blocks = std::vector<BlockScan>(blocks.size());
  std::atomic<int64_t> stored{0};
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      BlockScan& found = scan.blocks[b];
      for_strips(x, blocks[b],
                 [&](const uint32_t* keys, int64_t, int64_t n) { scan_keys(keys, n, scan.bracket, found); });
      const int64_t size = static_cast<int64_t>(found.inside.size());
      if (stored.fetch_add(size) + size > most) scan.overflow = true;
      if (scan.overflow) std::vector<uint32_t>().swap(found.inside);
    }
  });
}

// Keys at one random line of each stretch.
std::vector<uint32_t> draw_sample(const Views& x, const std::vector<Block>& blocks, const std::vector<int64_t>& offsets,
                                  int64_t numel) {
  const int64_t lines = std::min(kMaxSample, numel / 8) / kLine, stretch = numel / lines;
  std::vector<uint32_t> sample(lines * kLine);
  for (int64_t j = 0; j < lines; ++j) {
    const int64_t position = j * stretch + static_cast<int64_t>(mix(j) % static_cast<uint64_t>(stretch));
    const int64_t index = std::upper_bound(offsets.begin(), offsets.end(), position) - offsets.begin() - 1;
    const Block& block = blocks[index];
    const int64_t n = std::min(kLine, block.size);
    const int64_t inside = std::min(position - offsets[index], block.size - n) & -int64_t{8};  // whole bytes of bits
    uint32_t* out = &sample[j * kLine];
    fill_keys(x, block.tensor, block.begin + inside, n, out);
    for (int64_t i = n; i < kLine; ++i) out[i] = out[i - n];  // a shorter tensor's entries count repeatedly
  }
  return sample;
}

// The k-th largest key whatever the layout and the ties: three histograms of 11, 11 and 10 bits, each over the keys
// that share the bits found so far.
uint32_t select_by_histograms(const Views& x, const std::vector<Block>& blocks, int64_t k) {
  uint64_t prefix = 0;
  int64_t shift = 32;
  for (const int64_t width : {11, 11, 10}) {
    const int64_t known = shift;
    shift -= width;
    std::vector<int64_t> histogram(int64_t{1} << width, 0);
    std::mutex mutex;
    parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
      std::vector<int64_t> local(histogram.size(), 0);
      for (int64_t b = first; b < last; ++b)
        for_strips(x, blocks[b], [&](const uint32_t* keys, int64_t, int64_t n) {
          for (int64_t i = 0; i < n; ++i)
            if (uint64_t{keys[i]} >> known == prefix) ++local[(keys[i] >> shift) & (local.size() - 1)];
        });
      const std::lock_guard<std::mutex> lock(mutex);
      for (size_t b = 0; b < local.size(); ++b) histogram[b] += local[b];
    });
    int64_t bin = static_cast<int64_t>(histogram.size()) - 1;
    for (; k > histogram[bin]; --bin) k -= histogram[bin];
    prefix = (prefix << width) | static_cast<uint64_t>(bin);
  }
  return static_cast<uint32_t>(prefix);
}

Selected select(const Views& x, const std::vector<Block>& blocks, const std::vector<int64_t>& offsets, int64_t numel,
                int64_t k, Scan& scan) {
  scan.bracket = {0, kHighest};
  if (numel > kBlock) scan.bracket = bracket_rank(draw_sample(x, blocks, offsets, numel), k, numel, kHighest, kHighest);
  scan_blocks(x, blocks, numel / 8 + kBlock, scan);
  if (const std::optional<Selected> kth = select_scanned(scan.blocks, scan.bracket, scan.overflow, k)) return *kth;
  const uint32_t value = select_by_histograms(x, blocks, k);
  scan.bracket = {value, value};
  scan.overflow = false;
  scan_blocks(x, blocks, 0, scan);
  return *select_scanned(scan.blocks, scan.bracket, scan.overflow, k);
}

// Entries of a block equal to `value`, one of the bracket's ends or an entry inside.
int64_t count_equal(const Scan& scan, const BlockScan& block, uint32_t value) {
  if (value == scan.bracket.high) return block.counts.at_high;
  if (value == scan.bracket.low) return block.counts.at_low;
  return std::count(block.inside.begin(), block.inside.end(), value);
}

TASKARITH_SIMD void flag_keys(const uint32_t* __restrict keys, uint32_t least, int64_t n, uint8_t* __restrict flags) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) flags[i] = keys[i] >= least;
}

// Sets the bits of one block's keys above `value` and of the first `ties` that equal it.
void write_block(const Views& x, const Block& block, uint32_t value, int64_t ties, uint8_t* bits) {
  for_strips(x, block, [&](const uint32_t* keys, int64_t s, int64_t n) {
    for (int64_t i = 0; i < n; i += kGroup) {
      const int64_t size = std::min(kGroup, n - i);
      uint8_t flags[kGroup] = {};
      flag_keys(keys + i, value, size, flags);
      for (int64_t j = 0; j < size; ++j)
        if (keys[i + j] == value && ties-- <= 0) flags[j] = 0;
      const uint64_t word = pack_word(flags, size);
      std::memcpy(bits + (block.begin + s + i) / 8, &word, packed_size(size));
    }
  });
}

TensorList bottom_k_mask_cpu(TensorList scores, TensorList excluded, int64_t k, bool largest) {
  check_bottom_k_mask(scores, excluded, k);
  scores = contiguous(scores);
  Views x{{}, {}, largest ? 0u : ~0u};
  TensorList out;
  std::vector<int64_t> numels, offsets;
  int64_t numel = 0;
  for (const Tensor& s : scores) {
    x.scores.push_back(s.const_data_ptr<float>());
    out.push_back(torch::stable::empty({packed_size(s.numel())}, ScalarType::Byte));
    numels.push_back(s.numel());
  }
  for (const Tensor& e : excluded) x.excluded.push_back(e.const_data_ptr<uint8_t>());
  const std::vector<Block> blocks = cut_into_blocks(numels, kBlock);
  for (const Block& block : blocks) offsets.push_back(numel), numel += block.size;
  std::vector<int64_t> ties(blocks.size(), 0);
  uint32_t value = kHighest;  // k = 0: no key but a NaN's is as large, and no tie is kept
  if (k > 0) {
    Scan scan;
    const Selected kth = select(x, blocks, offsets, numel, k, scan);
    value = kth.value;
    int64_t kept = k - kth.above;
    for (size_t b = 0; b < blocks.size(); ++b) {
      ties[b] = std::min(kept, count_equal(scan, scan.blocks[b], value));
      kept -= ties[b];
    }
  }
  std::vector<uint8_t*> bits;
  for (const Tensor& o : out) bits.push_back(o.mutable_data_ptr<uint8_t>());
  parallel_ranges(static_cast<int64_t>(blocks.size()), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) write_block(x, blocks[b], value, ties[b], bits[blocks[b].tensor]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("bottom_k_mask", TORCH_BOX(&bottom_k_mask_cpu)); }

}  // namespace
}  // namespace taskarith
