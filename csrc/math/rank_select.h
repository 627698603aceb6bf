// Exact order statistics of ordered integers: a sample brackets the k-th largest, a histogram finds it in the bracket.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "math/ties_scan.h"

namespace taskarith {

struct Selected {
  uint32_t value;
  int64_t above, equal;  // entries greater than, and equal to, the value
};

// The rank-th largest (from 1) of all entries, which lie in [low, high]: one histogram, then one of its bins.
inline Selected select_rank(const std::vector<const std::vector<uint32_t>*>& parts, uint32_t low, uint32_t high,
                            int64_t rank) {
  constexpr uint32_t kBins = 4096;
  int shift = 0;
  while (((high - low) >> shift) >= kBins) ++shift;
  std::vector<int64_t> histogram(kBins, 0);
  for (const auto* part : parts)
    for (const uint32_t bits : *part) ++histogram[(bits - low) >> shift];
  uint32_t bin = kBins - 1;
  int64_t above = 0;
  for (; rank > above + histogram[bin]; --bin) above += histogram[bin];
  std::vector<uint32_t> chosen;
  chosen.reserve(histogram[bin] + 1);
  for (const auto* part : parts)
    for (const uint32_t bits : *part)
      if ((bits - low) >> shift == bin) chosen.push_back(bits);
  const auto kth = chosen.begin() + (rank - above - 1);
  std::nth_element(chosen.begin(), kth, chosen.end(), std::greater<>());
  const uint32_t value = *kth;
  above += std::count_if(chosen.begin(), kth, [&](uint32_t bits) { return bits > value; });
  return {value, above, std::count(chosen.begin(), chosen.end(), value)};
}

// What a scan found in one block of entries.
struct BlockScan {
  BracketCounts counts;
  std::vector<uint32_t> inside;  // strictly in the bracket, in order
};

// The k-th largest entry of all blocks, unless the bracket missed it, or `overflow`: not all inside were kept.
inline std::optional<Selected> select_scanned(const std::vector<BlockScan>& blocks, Bracket bracket, bool overflow,
                                              int64_t k) {
  BracketCounts total;
  int64_t stored = 0;
  std::vector<const std::vector<uint32_t>*> inside;
  for (const BlockScan& block : blocks) {
    total.above += block.counts.above;
    total.at_high += block.counts.at_high;
    total.at_low += block.counts.at_low;
    stored += static_cast<int64_t>(block.inside.size());
    inside.push_back(&block.inside);
  }
  const auto [low, high] = bracket;
  const int64_t from_high = total.above + total.at_high, above_low = from_high + stored;
  if (k <= total.above) return std::nullopt;
  if (k <= from_high) return Selected{high, total.above, total.at_high};
  if (overflow || k > above_low + total.at_low) return std::nullopt;
  if (k > above_low) return Selected{low, above_low, total.at_low};
  Selected kth = select_rank(inside, low, high, k - from_high);
  kth.above += from_high;
  return kth;
}

inline uint64_t mix(uint64_t x) {  // a counter-based random number (SplitMix64's finalizer)
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Quantiles of a sample of entries in [0, highest], five standard deviations on either side of k / n (and ten ranks,
// for k near 1 or n): the bracket then holds the k-th largest of all n but for unlucky layouts, and 0.8 % of the
// entries at k / n = 0.2. `above` is more than every entry.
inline Bracket bracket_rank(const std::vector<uint32_t>& sample, int64_t k, int64_t n, uint32_t highest,
                            uint32_t above) {
  const int64_t size = static_cast<int64_t>(sample.size());
  const double q = static_cast<double>(k) / static_cast<double>(n);
  const double rank = q * static_cast<double>(size);
  const double margin = 5 * std::sqrt(rank * (1 - q)) + 10;
  const int64_t high = static_cast<int64_t>(std::floor(rank - margin));
  const int64_t low = static_cast<int64_t>(std::ceil(rank + margin));
  return {low <= size ? select_rank({&sample}, 0, highest, low).value : 0,
          high >= 1 ? select_rank({&sample}, 0, highest, high).value : above};
}

}  // namespace taskarith
