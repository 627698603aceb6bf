// Atomics, by compare-and-swap on real atomic memory operations, so that a race detector sees what CUDA promises.
#pragma once

#include <atomic>
#include <type_traits>

namespace cuda_emulation {

// Replaces *address by f(*address); returns the old value, like every CUDA atomic.
template <class T, class F>
T atomic_update(T* address, const F& f) {
  std::atomic_ref<T> cell(*address);
  T old = cell.load(std::memory_order_relaxed);
  while (!cell.compare_exchange_weak(old, f(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace cuda_emulation

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T old) { return static_cast<T>(old - v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T old) { return v < old ? v : old; });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T old) { return static_cast<T>(old | v); });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T old) { return static_cast<T>(old & v); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return cuda_emulation::atomic_update(p, [=](T old) { return old == expected ? v : old; });
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
