// A fiber is a function with a stack of its own that can stop in the middle and go on later: one CUDA thread.
//
// The first entry goes through makecontext, every later switch through _setjmp/_longjmp, which saves no signal mask and
// so costs no system call. AddressSanitizer is told of every switch.
// Compile without _FORTIFY_SOURCE: its longjmp refuses to jump between stacks.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <csetjmp>
#include <cstddef>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#define ASAN_UNPOISON_MEMORY_REGION(begin, size)
#endif

namespace cuda_emulation {

class Fiber {
 public:
  using Entry = void (*)();

  // `entry` must never return; it ends a turn by suspend().
  explicit Fiber(Entry entry) : entry_(entry) {
    stack_ = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack_, kGuard, PROT_NONE);  // an overflow of the stack stops here, not in a neighbour
  }
  ~Fiber() { munmap(stack_, kGuard + kStack); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Scheduler's side: run the fiber until it suspends.
  void resume() {
    if (_setjmp(scheduler_)) return __sanitizer_finish_switch_fiber(scheduler_frames_, nullptr, nullptr);
    __sanitizer_start_switch_fiber(&scheduler_frames_, bottom(), kStack);
    if (started_) _longjmp(self_, 1);
    started_ = true;
    starting_ = this;
    getcontext(&first_);
    first_.uc_stack.ss_sp = bottom();
    first_.uc_stack.ss_size = kStack;
    first_.uc_link = nullptr;
    makecontext(&first_, &start, 0);
    setcontext(&first_);
  }

  // Fiber's side: back to the scheduler until the next resume().
  void suspend() {
    if (!_setjmp(self_)) {
      __sanitizer_start_switch_fiber(&frames_, scheduler_stack_, scheduler_stack_size_);
      _longjmp(scheduler_, 1);
    }
    __sanitizer_finish_switch_fiber(frames_, &scheduler_stack_, &scheduler_stack_size_);
  }

  // Forget where the fiber stopped; the next resume() starts it anew.
  void restart() {
    started_ = false;
    ASAN_UNPOISON_MEMORY_REGION(bottom(), kStack);
  }

 private:
  static constexpr size_t kStack = 128 * 1024;
  static constexpr size_t kGuard = 64 * 1024;  // a multiple of every usual page size

  char* bottom() const { return static_cast<char*>(stack_) + kGuard; }

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
  void *frames_ = nullptr, *scheduler_frames_ = nullptr;  // what the sanitizer keeps of each side
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
};

}  // namespace cuda_emulation
