// __syncthreads and its voting forms.
#pragma once

#include "emulation/block.h"

namespace cuda_emulation {

// All living threads of the block must come, and to the same call. Returns how many had a true predicate.
inline unsigned block_barrier(bool predicate, const Site& site) {
  Block& block = *current_block;
  Barrier& barrier = block.barrier;
  if (barrier.arrived > 0 && !same_site(barrier.site, site))
    throw Error("divergent barrier: thread " + text(current_thread->index) + " is at " + text(site) +
                ", others wait at " + text(barrier.site) + block.where());
  const unsigned generation = barrier.generation;
  unsigned& votes = barrier.votes[generation & 1];
  __tsan_release(&votes);
  {
    const Bookkeeping own;
    barrier.site = site;
    votes += predicate;
    ++barrier.arrived;
    block.release_if_complete();
  }
  if (barrier.generation == generation) block.wait(barrier);
  __tsan_acquire(&votes);
  return votes;
}

}  // namespace cuda_emulation

inline void __syncthreads(cuda_emulation::Site at = cuda_emulation::Site::current()) {
  cuda_emulation::block_barrier(false, at);
}
inline int __syncthreads_count(int p, cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return static_cast<int>(cuda_emulation::block_barrier(p != 0, at));
}
inline int __syncthreads_or(int p, cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return cuda_emulation::block_barrier(p != 0, at) > 0;
}
inline int __syncthreads_and(int p, cuda_emulation::Site at = cuda_emulation::Site::current()) {
  return cuda_emulation::block_barrier(p == 0, at) == 0;
}
