// The pybind11 module `_native`: build facts, CPU features, and the probes that give the benchmarks their floor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "utils/huge_pages.h"
#include "utils/simd.h"

namespace py = pybind11;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_of(int threads, const std::function<void(int)>& work) {
  std::vector<std::thread> pool;
  const auto start = Clock::now();
  for (int i = 1; i < threads; ++i) pool.emplace_back(work, i);
  work(0);
  for (std::thread& t : pool) t.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Nine streams, as a merge of eight tasks reads them; four accumulators each hide the add latency.
TASKARITH_SIMD float sum_of(const float* x, int64_t n) {
  float s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t i = 0; i < n; ++i) s += x[i];
  return s;
}

double read_bandwidth(int threads, int repeats) {
  if (threads < 1 || repeats < 1) throw py::value_error("threads and repeats must be at least 1");
  py::gil_scoped_release release;
  constexpr int64_t kStreams = 9, kElements = 16 << 20, kStrip = 2048;
  std::vector<std::unique_ptr<float[], decltype(&std::free)>> streams;
  for (int i = 0; i < kStreams; ++i) {
    constexpr size_t kBytes = kElements * sizeof(float);
    streams.emplace_back(static_cast<float*>(std::aligned_alloc(2u << 20, kBytes)), &std::free);
    if (!streams.back()) throw std::bad_alloc();
    taskarith::advise_huge_pages(streams.back().get(), kBytes);
    std::fill_n(streams.back().get(), kElements, 1.0f);
  }
  std::vector<float> sink(threads * 16);
  double best = 0;
  for (int r = 0; r < repeats; ++r) {
    const double s = seconds_of(threads, [&](int id) {
      const int64_t strips = kElements / kStrip, lo = strips * id / threads, hi = strips * (id + 1) / threads;
      for (int64_t j = lo; j < hi; ++j)
        for (const auto& x : streams) sink[id * 16] += sum_of(x.get() + j * kStrip, kStrip);
    });
    best = std::max(best, double(kStreams * kElements * sizeof(float)) / s);
  }
  return best;
}

// 32 independent chains of 16 lanes: enough to fill two FMA units of latency 4 with any vector width.
TASKARITH_SIMD void fma_chains(float* x, int64_t rounds) {
  constexpr int kChains = 16 * 12;
  float a[kChains];
  for (int i = 0; i < kChains; ++i) a[i] = x[i];
  for (int64_t r = 0; r < rounds; ++r)
#pragma omp simd
    for (int i = 0; i < kChains; ++i) a[i] = __builtin_fmaf(a[i], 0.999f, 0.001f);
  for (int i = 0; i < kChains; ++i) x[i] = a[i];
}

double fma_peak(int threads, int repeats) {
  if (threads < 1 || repeats < 1) throw py::value_error("threads and repeats must be at least 1");
  py::gil_scoped_release release;
  constexpr int64_t kRounds = 2'000'000, kChains = 16 * 12;
  std::vector<std::vector<float>> x(threads, std::vector<float>(kChains, 0.5f));
  double best = 0;
  for (int r = 0; r < repeats; ++r) {
    const double s = seconds_of(threads, [&](int id) { fma_chains(x[id].data(), kRounds); });
    best = std::max(best, 2.0 * kChains * kRounds * threads / s);
  }
  return best;
}

std::map<std::string, std::string> build_facts() {
  return {{"compiler", __VERSION__},
          {"c++", std::to_string(__cplusplus)},
#if defined(__OPTIMIZE__)
          {"optimized", "yes"}
#else
          {"optimized", "no"}
#endif
  };
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) found.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) found.emplace_back("avx512bw");
  if (__builtin_cpu_supports("avx512vl")) found.emplace_back("avx512vl");
  if (__builtin_cpu_supports("avx512dq")) found.emplace_back("avx512dq");
#endif
  return found;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build facts, CPU features and roofline probes of this machine.";
  m.def("build_facts", &build_facts, "Compiler and flags of the native build.");
  m.def("cpu_features", &cpu_features, "Instruction sets that the kernels may use here.");
  m.def("read_bandwidth", &read_bandwidth, py::arg("threads"), py::arg("repeats") = 5,
        "Best bytes per second of reading nine 64 MiB arrays.");
  m.def("fma_peak", &fma_peak, py::arg("threads"), py::arg("repeats") = 5,
        "Best float32 FLOP per second of independent fused multiply-adds.");
}
