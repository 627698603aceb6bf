// What the compiler's sanitizers are told, so that they see CUDA threads where there are fibers of one thread.
//
// AddressSanitizer learns which stack is in use. ThreadSanitizer sees every CUDA thread of every block as a thread of
// its own, which starts after what the host did before the launch and ends before what it does next. In between only
// __syncthreads and its votes order the accesses of a block, __syncwarp those of its lanes. Shuffles and votes of a
// warp do not (CUDA promises no order of memory for them), nor do atomics, which race with plain accesses only; nothing
// orders a block and the next. So a missing barrier is reported as a data race, in whatever order the threads ran.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#define ASAN_UNPOISON_MEMORY_REGION(begin, size)
#endif

#ifdef __SANITIZE_THREAD__  // its header would declare what stands above, too
#define TASKARITH_TSAN(declaration, otherwise) extern "C" declaration;
#else
#define TASKARITH_TSAN(declaration, otherwise) \
  inline declaration { otherwise }
#endif
TASKARITH_TSAN(void* __tsan_get_current_fiber(), return nullptr;)
TASKARITH_TSAN(void* __tsan_create_fiber(unsigned), return nullptr;)
TASKARITH_TSAN(void __tsan_destroy_fiber(void*), )
TASKARITH_TSAN(void __tsan_switch_to_fiber(void*, unsigned), )
TASKARITH_TSAN(void __tsan_set_fiber_name(void*, const char*), )
TASKARITH_TSAN(void __tsan_release(void*), )
TASKARITH_TSAN(void __tsan_acquire(void*), )
TASKARITH_TSAN(void __tsan_ignore_thread_begin(), )
TASKARITH_TSAN(void __tsan_ignore_thread_end(), )
#undef TASKARITH_TSAN

namespace cuda_emulation {

constexpr unsigned kNoSync = 1;  // __tsan_switch_to_fiber_no_sync: the switch orders nothing

// A thread is costly to make for a race detector, so blocks take turns with two sets of them: races are seen between
// neighbours, but the third block follows on the first.
#ifdef __SANITIZE_THREAD__
constexpr size_t kThreadSets = 2;
#else
constexpr size_t kThreadSets = 1;
#endif

// While it lives, what the current thread writes is the emulation's bookkeeping, not the kernel's.
struct Bookkeeping {
  Bookkeeping() { __tsan_ignore_thread_begin(); }
  ~Bookkeeping() { __tsan_ignore_thread_end(); }
  Bookkeeping(const Bookkeeping&) = delete;
  Bookkeeping& operator=(const Bookkeeping&) = delete;
};

}  // namespace cuda_emulation
