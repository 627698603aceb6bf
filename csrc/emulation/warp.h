// Warp shuffles, votes and __syncwarp. Stricter than the hardware: every lane that the mask names and that exists must
// come to the same call, and a shuffle may read only such lanes.
#pragma once

#include <cstring>
#include <type_traits>

#include "emulation/block.h"

namespace cuda_emulation {

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

template <class T>
uint64_t to_bits(const T& value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

// Publishes `bits`, waits for the other lanes of `mask`, and returns what all of them published.
inline const uint64_t* warp_meet(unsigned mask, uint64_t bits, const Site& site, bool orders_memory = false) {
  Block& block = *current_block;
  const unsigned lane = current_thread->linear % 32, warp = current_thread->linear / 32;
  if (!(mask >> lane & 1))
    throw Error("bad mask: thread " + text(current_thread->index) + " at " + text(site) + " is lane " +
                std::to_string(lane) + ", which mask " + hex(mask) + " does not name" + block.where());
  WarpGroup& group = block.group(warp, mask);
  if (group.arrived != 0 && !same_site(group.site, site))
    throw Error("divergent warp: thread " + text(current_thread->index) + " is at " + text(site) +
                ", other lanes wait at " + text(group.site) + block.where());
  const unsigned generation = group.generation;
  uint64_t* slots = group.slots[generation & 1];
  if (orders_memory) __tsan_release(slots);
  {
    const Bookkeeping own;
    group.site = site;
    slots[lane] = bits;
    group.arrived |= 1u << lane;
    if (group.arrived == (mask & block.lanes_of(warp))) {
      group.arrived = 0;
      ++group.generation;
    }
  }
  if (group.generation == generation) block.wait(group);
  if (orders_memory) __tsan_acquire(slots);
  return slots;
}

template <class T>
T warp_read(const uint64_t* slots, unsigned mask, int lane, const Site& site) {
  const unsigned readable = mask & current_block->lanes_of(current_thread->linear / 32);
  if (!(readable >> lane & 1))
    throw Error("bad mask: thread " + text(current_thread->index) + " at " + text(site) + " reads lane " +
                std::to_string(lane) + ", which mask " + hex(mask) + " does not name or which does not exist" +
                current_block->where());
  return from_bits<T>(slots[lane]);
}

inline unsigned warp_vote(unsigned mask, bool predicate, const Site& site) {
  const uint64_t* slots = warp_meet(mask, predicate, site);
  const unsigned present = mask & current_block->lanes_of(current_thread->linear / 32);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (present >> lane & 1) votes |= static_cast<unsigned>(slots[lane]) << lane;
  return votes;
}

template <class F>
unsigned warp_reduce(unsigned mask, unsigned value, const Site& site, const F& combine) {
  const uint64_t* slots = warp_meet(mask, value, site);
  const unsigned present = mask & current_block->lanes_of(current_thread->linear / 32);
  unsigned result = value;
  for (unsigned lane = 0, first = 1; lane < 32; ++lane)
    if (present >> lane & 1) {
      const unsigned other = static_cast<unsigned>(slots[lane]);
      result = first ? other : combine(result, other);
      first = 0;
    }
  return result;
}

inline int lane() { return static_cast<int>(current_thread->linear % 32); }

}  // namespace cuda_emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_emulation::Site at = cuda_emulation::Site::current()) {
  const uint64_t* slots = cuda_emulation::warp_meet(mask, cuda_emulation::to_bits(value), at);
  const int segment = cuda_emulation::lane() & ~(width - 1);
  return cuda_emulation::warp_read<T>(slots, mask, segment + (source & (width - 1)), at);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_emulation::Site at = cuda_emulation::Site::current()) {
  const uint64_t* slots = cuda_emulation::warp_meet(mask, cuda_emulation::to_bits(value), at);
  const int lane = cuda_emulation::lane(), from = lane - static_cast<int>(delta);
  return cuda_emulation::warp_read<T>(slots, mask, from < (lane & ~(width - 1)) ? lane : from, at);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_emulation::Site at = cuda_emulation::Site::current()) {
  const uint64_t* slots = cuda_emulation::warp_meet(mask, cuda_emulation::to_bits(value), at);
  const int lane = cuda_emulation::lane(), from = lane + static_cast<int>(delta);
  return cuda_emulation::warp_read<T>(slots, mask, from >= (lane & ~(width - 1)) + width ? lane : from, at);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  cuda_emulation::Site at = cuda_emulation::Site::current()) {
  const uint64_t* slots = cuda_emulation::warp_meet(mask, cuda_emulation::to_bits(value), at);
  const int lane = cuda_emulation::lane(), from = lane ^ bits;
  return cuda_emulation::warp_read<T>(slots, mask, from >= (lane & ~(width - 1)) + width ? lane : from, at);
}

inline unsigned __ballot_sync(unsigned mask, int p, cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return cuda_emulation::warp_vote(mask, p != 0, at);
}
inline int __any_sync(unsigned mask, int p, cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return cuda_emulation::warp_vote(mask, p != 0, at) != 0;
}
inline int __all_sync(unsigned mask, int p, cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return cuda_emulation::warp_vote(mask, p == 0, at) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, cuda_emulation::Site at = cuda_emulation::Site::current()) {
  cuda_emulation::warp_meet(mask, 0, at, true);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value,
                                  cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return cuda_emulation::warp_reduce(mask, value, at, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value,
                                  cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return cuda_emulation::warp_reduce(mask, value, at, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
