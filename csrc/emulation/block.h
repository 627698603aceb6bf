// One block of CUDA threads on fibers, run by a scheduler in a chosen order until all have ended.
//
// A thread runs until it ends or waits at a barrier or warp collective, and forwards or in reverse a warp runs until
// all of it wait for others; so a kernel that forgets a barrier sees what the order makes of it: later warps have
// written nothing yet, and have not read what earlier ones write next. A round in which nobody can run is a deadlock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "emulation/fiber.h"
#include "emulation/report.h"
#include "emulation/shared.h"

namespace cuda_emulation {

enum class Order { kForward, kReverse, kRandom };

struct Schedule {
  Order order = Order::kForward;
  unsigned seed = 1;
};

// The order in which blocks, and the threads in them, run from the next launch on.
inline Schedule& schedule() {
  static Schedule instance;
  return instance;
}

// Where threads meet: they wait for the generation to pass.
struct Meeting {
  unsigned generation = 0;
  Site site;
};

struct Barrier : Meeting {
  unsigned arrived = 0;
  unsigned votes[2] = {0, 0};  // by parity of the generation
};

struct WarpGroup : Meeting {
  unsigned arrived = 0;        // bits of lanes
  uint64_t slots[2][32] = {};  // by parity: a fast lane may publish its next value before a slow one has read
};

struct Thread {
  explicit Thread(Fiber::Entry entry) : fiber(entry) {}
  Fiber fiber;
  uint3 index{};
  unsigned linear = 0;
  bool done = false;
  const Meeting* waits_for = nullptr;
  unsigned seen = 0;
  bool must_wait() const { return waits_for && waits_for->generation == seen; }
};

struct Block;
inline Block* current_block = nullptr;
inline Thread* current_thread = nullptr;

struct Block {
  Block(const dim3& grid, const dim3& size, const uint3& index, size_t shared_bytes, const std::function<void()>& body)
      : grid(grid), size(size), index(index), shared(shared_bytes), body(&body) {}

  dim3 grid, size;
  uint3 index;
  SharedMemory shared;
  const std::function<void()>* body;
  std::vector<Thread*> threads;
  unsigned alive = 0;
  Barrier barrier;
  std::map<std::pair<unsigned, unsigned>, WarpGroup> groups;  // by warp and mask
  std::exception_ptr error;

  void run();
  void wait(const Meeting& meeting) {
    Thread& self = *current_thread;
    self.waits_for = &meeting;
    self.seen = meeting.generation;
    self.fiber.suspend();
    self.waits_for = nullptr;
  }
  // Threads that have ended hold no barrier.
  void release_if_complete() {
    if (alive == 0 || barrier.arrived < alive) return;
    barrier.arrived = 0;
    barrier.votes[++barrier.generation & 1] = 0;
  }
  WarpGroup& group(unsigned warp, unsigned mask) {
    const Bookkeeping own;
    return groups[{warp, mask}];
  }
  // Lanes of a warp that exist: the last warp of a block may be partial.
  unsigned lanes_of(unsigned warp) const {
    const size_t left = threads.size() - warp * 32;
    return left >= 32 ? ~0u : (1u << left) - 1;
  }
  std::string where() const { return " (block " + text(index) + ")"; }
  std::string deadlock() const;
};

// A fiber serves one thread of block after block.
inline void thread_main() {
  for (;;) {
    Block& block = *current_block;
    Thread& self = *current_thread;
    try {
      (*block.body)();
    } catch (...) {
      block.error = std::current_exception();
    }
    {
      const Bookkeeping own;
      self.done = true;
      --block.alive;
      block.release_if_complete();
    }
    self.fiber.suspend();
  }
}

// Blocks take the sets of threads by turns.
inline std::vector<std::unique_ptr<Thread>>& thread_pool(size_t turn) {
  static std::vector<std::unique_ptr<Thread>> sets[kThreadSets];
  return sets[turn % kThreadSets];
}

inline void join_threads() {
  for (size_t turn = 0; turn < kThreadSets; ++turn)
    for (const std::unique_ptr<Thread>& thread : thread_pool(turn)) thread->fiber.join();
}

inline void Block::run() {
  const unsigned count = size.x * size.y * size.z;
  const uint64_t number = index.x + uint64_t{grid.x} * (index.y + uint64_t{grid.y} * index.z);
  std::vector<std::unique_ptr<Thread>>& pool = thread_pool(number);
  while (pool.size() < count) pool.push_back(std::make_unique<Thread>(&thread_main));
  threads.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = *(threads[i] = pool[i].get());
    t.linear = i;
    t.index = uint3{i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    t.done = false;
    t.waits_for = nullptr;
    if (kThreadSets > 1) t.fiber.set_name("block " + text(index) + " thread " + text(t.index));
  }
  std::vector<Thread*> turns = threads;
  const Schedule plan = schedule();
  if (plan.order == Order::kReverse) std::reverse(turns.begin(), turns.end());
  const size_t together = plan.order == Order::kRandom ? count : 32;
  std::mt19937 random(plan.seed + 7919u * static_cast<unsigned>(number));
  alive = count;
  current_block = this;
  while (alive > 0 && !error) {
    bool progress = false;
    if (plan.order == Order::kRandom) std::shuffle(turns.begin(), turns.end(), random);
    for (size_t first = 0; first < count; first += together) {
      bool ran = true;
      while (ran) {
        ran = false;
        for (size_t i = first; i < std::min<size_t>(first + together, count); ++i) {
          Thread* t = turns[i];
          if (t->done || t->must_wait() || error) continue;
          ran = progress = true;
          current_thread = t;
          t->fiber.resume();
        }
        if (plan.order == Order::kRandom) break;
      }
    }
    if (!progress) error = std::make_exception_ptr(Error(deadlock()));
  }
  current_block = nullptr;
  current_thread = nullptr;
  if (error) {
    pool.clear();  // some have stopped in the middle
    join_threads();
    std::rethrow_exception(error);
  }
  shared.check_guards(where());
}

// Names the first waiting thread and whom it waits for.
inline std::string Block::deadlock() const {
  for (const Thread* t : threads) {
    if (t->done || !t->waits_for) continue;
    const std::string at = "thread " + text(t->index) + " waits for ever at " + text(t->waits_for->site);
    for (const auto& [key, group] : groups) {
      if (&group != t->waits_for) continue;
      const unsigned mask = key.second, missing = mask & lanes_of(key.first) & ~group.arrived;
      const unsigned lane = static_cast<unsigned>(__builtin_ctz(missing));
      const bool ended = threads[key.first * 32 + lane]->done;
      return (ended ? "bad mask: " : "deadlock: ") + at + ": mask " + hex(mask) + " names lane " +
             std::to_string(lane) + (ended ? ", which has ended" : ", which never comes") + where();
    }
    return "deadlock: " + at + where();
  }
  return "deadlock" + where();
}

}  // namespace cuda_emulation
