// Which elements DARE keeps: Philox 4x32-10 (Salmon et al. 2011) keyed by a stream, counted by the element's index.
//
// Element e compares u(e) = 2^16 high(e) + low(e) with the density. Its half-words are those of Philox block
// (c, level), counter words (c mod 2^32, c / 2^32, level, 0), at c = 8 (e / 64) + (e mod 32) / 4, half-word
// 4 ((e / 32) mod 2) + e mod 4 (of the words in order, the lower half first): high(e) at level 0, low(e) at level 1.
// So one block decides eight elements, 64 consecutive ones need eight consecutive blocks, and the second level is
// computed only for the one element in 65,536 that the first leaves open.
#pragma once

#include <cstdint>

#include "utils/host_device.h"

namespace taskarith {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

struct PhiloxBlock {
  uint32_t words[4];
};

TASKARITH_HOST_DEVICE PhiloxBlock philox(uint64_t counter, uint32_t level, uint64_t key) {
  uint32_t x[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), level, 0};
  uint32_t k[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  for (int r = 0; r < kPhiloxRounds; ++r) {
    const uint64_t p = static_cast<uint64_t>(kPhiloxMultiplier0) * x[0];
    const uint64_t q = static_cast<uint64_t>(kPhiloxMultiplier1) * x[2];
    x[0] = static_cast<uint32_t>(q >> 32) ^ x[1] ^ k[0];
    x[1] = static_cast<uint32_t>(q);
    x[2] = static_cast<uint32_t>(p >> 32) ^ x[3] ^ k[1];
    x[3] = static_cast<uint32_t>(p);
    k[0] += kPhiloxWeyl0;
    k[1] += kPhiloxWeyl1;
  }
  return {{x[0], x[1], x[2], x[3]}};
}

// Which of a block's half-words belongs to an element.
TASKARITH_HOST_DEVICE int half_of(int64_t element) { return static_cast<int>(4 * ((element / 32) % 2) + element % 4); }

// By shifts: an indexed array would leave a GPU's registers.
TASKARITH_HOST_DEVICE uint32_t half_word(const PhiloxBlock& block, int half) {
  const uint64_t low = static_cast<uint64_t>(block.words[1]) << 32 | block.words[0];
  const uint64_t high = static_cast<uint64_t>(block.words[3]) << 32 | block.words[2];
  return static_cast<uint32_t>((half & 4 ? high : low) >> (16 * (half & 3))) & 0xFFFFu;
}

TASKARITH_HOST_DEVICE uint64_t counter_of(int64_t element) {
  return static_cast<uint64_t>(8 * (element / 64) + (element % 32) / 4);
}

// Decides an element whose high(e) equals that of `last`.
TASKARITH_HOST_DEVICE bool low_keeps(int64_t element, uint64_t key, uint32_t last) {
  return half_word(philox(counter_of(element), 1, key), half_of(element)) <= (last & 0xFFFFu);
}

}  // namespace taskarith
