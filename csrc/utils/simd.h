// Run-time SIMD dispatch by function multiversioning: one body, one clone per x86-64 level, chosen at load time.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define TASKARITH_SIMD __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4"), noinline))
#else
#define TASKARITH_SIMD __attribute__((noinline))
#endif

// For hand-written AVX-512 bodies: guard the call with has_avx512().
#if defined(__x86_64__)
#define TASKARITH_AVX512 __attribute__((target("arch=x86-64-v4")))
namespace taskarith {
inline bool has_avx512() {
  static const bool yes = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return yes;
}
}  // namespace taskarith
#endif
