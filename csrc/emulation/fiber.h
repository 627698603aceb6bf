// A fiber is a function with a stack of its own that can stop in the middle and go on later: one CUDA thread.
//
// The first entry goes through makecontext, every later switch through _setjmp/_longjmp, which saves no signal mask and
// so costs no system call. The sanitizers are told of every switch.
// Compile without _FORTIFY_SOURCE: its longjmp refuses to jump between stacks.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <csetjmp>
#include <cstddef>
#include <new>
#include <string>

#include "emulation/sanitizers.h"

namespace cuda_emulation {

class Fiber {
 public:
  using Entry = void (*)();

  // `entry` must never return; it ends a turn by suspend().
  explicit Fiber(Entry entry) : entry_(entry) {
    stack_ = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack_, kGuard, PROT_NONE);  // an overflow of the stack stops here, not in a neighbour
    context_ = __tsan_create_fiber(0);
  }
  ~Fiber() {
    join();
    __tsan_destroy_fiber(context_);
    ASAN_UNPOISON_MEMORY_REGION(bottom(), kStack);  // it may have stopped in the middle
    munmap(stack_, kGuard + kStack);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Scheduler's side: run the fiber until it suspends.
  void resume() {
    if (_setjmp(scheduler_)) return __sanitizer_finish_switch_fiber(scheduler_frames_, nullptr, nullptr);
    scheduler_context_ = __tsan_get_current_fiber();
    const bool first = !started_;
    if (first) prepare();
    __sanitizer_start_switch_fiber(&scheduler_frames_, bottom(), kStack);
    __tsan_switch_to_fiber(context_, kNoSync);
    if (first) setcontext(&first_);
    _longjmp(self_, 1);
  }

  // Fiber's side: back to the scheduler until the next resume().
  void suspend() {
    if (!_setjmp(self_)) {
      __sanitizer_start_switch_fiber(&frames_, scheduler_stack_, scheduler_stack_size_);
      __tsan_switch_to_fiber(scheduler_context_, kNoSync);
      _longjmp(scheduler_, 1);
    }
    __sanitizer_finish_switch_fiber(frames_, &scheduler_stack_, &scheduler_stack_size_);
  }

  // For a race detector: what the fiber did comes before what the caller does next, and the other way round.
  void join() {
    void* caller = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(context_, 0);
    __tsan_switch_to_fiber(caller, 0);
  }

  // How a race detector calls it.
  void set_name(const std::string& name) { __tsan_set_fiber_name(context_, name.c_str()); }

 private:
  static constexpr size_t kStack = 128 * 1024;
  static constexpr size_t kGuard = 64 * 1024;  // a multiple of every usual page size

  char* bottom() const { return static_cast<char*>(stack_) + kGuard; }

  void prepare() {
    started_ = true;
    starting_ = this;
    getcontext(&first_);
    first_.uc_stack.ss_sp = bottom();
    first_.uc_stack.ss_size = kStack;
    first_.uc_link = nullptr;
    makecontext(&first_, &start, 0);
  }

  static void start() {
    Fiber& self = *starting_;
    __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_stack_, &self.scheduler_stack_size_);
    self.entry_();
  }

  static inline Fiber* starting_ = nullptr;

  Entry entry_;
  void* stack_;
  bool started_ = false;
  ucontext_t first_;
  jmp_buf self_, scheduler_;
  void *frames_ = nullptr, *scheduler_frames_ = nullptr;  // what the sanitizers keep of each side
  void *context_ = nullptr, *scheduler_context_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
};

}  // namespace cuda_emulation
