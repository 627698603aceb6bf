// Packed masks: bit i % 8 of byte i / 8 is element i (little-endian bit order), so 64 elements are one little-endian
// word.
#pragma once

#include <cstdint>
#include <cstring>

#include "utils/host_device.h"

namespace taskarith {

TASKARITH_HOST_DEVICE constexpr int64_t packed_size(int64_t numel) { return (numel + 7) / 8; }

// The n <= 57 bits from bit `first` on, in a mask of `size` bytes.
inline uint64_t bits_at(const uint8_t* bits, int64_t size, int64_t first, int64_t n) {
  uint64_t word = 0;
  std::memcpy(&word, bits + first / 8, static_cast<size_t>(size - first / 8 < 8 ? size - first / 8 : 8));
  return word >> (first % 8) & ((uint64_t{1} << n) - 1);
}

// Eight bytes of 0 or 1 to eight bits: the product moves byte i to bit 56 + i.
TASKARITH_HOST_DEVICE uint8_t pack_eight(uint64_t flags) {
  return static_cast<uint8_t>((flags * 0x0102040810204080ull) >> 56);
}

inline uint8_t pack_eight(const uint8_t* flags) {
  uint64_t bytes;
  std::memcpy(&bytes, flags, 8);
  return pack_eight(bytes);
}

// The inverse. Every byte gets all eight bits and keeps its own one; adding 127 carries that into bit 7.
TASKARITH_HOST_DEVICE uint64_t spread_eight(uint8_t bits) {
  const uint64_t own = (bits * 0x0101010101010101ull) & 0x8040201008040201ull;
  return ((((own & 0x7F7F7F7F7F7F7F7Full) + 0x7F7F7F7F7F7F7F7Full) | own) >> 7) & 0x0101010101010101ull;
}

// n <= 64 entries; all 64 bytes of `flags` are 0 or 1, or they would carry into their neighbours.
inline uint64_t pack_word(const uint8_t* flags, int64_t n) {
  uint64_t word = 0;
  for (int64_t i = 0; i < n; i += 8) word |= static_cast<uint64_t>(pack_eight(flags + i)) << i;
  return n < 64 ? word & ((uint64_t{1} << n) - 1) : word;
}

// ORs the n lowest bits of `source` into `target` from bit `position` on.
inline void place_bits(const uint64_t* source, int64_t n, uint64_t* target, int64_t position) {
  const int64_t shift = position % 64;
  target += position / 64;
  for (int64_t i = 0; i < n; i += 64, ++source, ++target) {
    target[0] |= *source << shift;
    if (shift && n - i > 64 - shift) target[1] |= *source >> (64 - shift);
  }
}

// The elements for which at least `threshold` of the words have a bit: counters of `kPlanes` bits, one a bit lane.
inline uint64_t at_least(const uint64_t* words, int64_t count, int64_t stride, int64_t threshold) {
  constexpr int kPlanes = 32;
  uint64_t planes[kPlanes] = {};
  int used = 0;
  while ((count >> used) || (threshold >> used)) ++used;
  for (int64_t t = 0; t < count; ++t) {
    uint64_t carry = words[t * stride];
    for (int p = 0; carry; ++p) {
      const uint64_t sum = planes[p] ^ carry;
      carry &= planes[p];
      planes[p] = sum;
    }
  }
  uint64_t greater = 0, equal = ~uint64_t{0};
  for (int p = used - 1; p >= 0; --p) {
    const uint64_t bit = (threshold >> p) & 1 ? ~uint64_t{0} : 0;
    greater |= equal & planes[p] & ~bit;
    equal &= ~(planes[p] ^ bit);
  }
  return greater | equal;
}

}  // namespace taskarith
