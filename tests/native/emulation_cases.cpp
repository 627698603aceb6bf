// emulation_cases CASE [ORDER [SEED]]: runs one case; prints "right", "wrong" or the emulation's report.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "emulation_kernels.cuh"

namespace {

using cuda_emulation::launch;

std::vector<float> numbers(int n) {
  std::vector<float> x(n);
  for (int i = 0; i < n; ++i) x[i] = static_cast<float>(i * 2654435761u >> 8) / (1 << 24) - 0.5f;
  return x;
}

template <class T>
bool block_sums() {
  const int n = 10007;
  std::vector<T> x;
  double truth = 0;
  for (float v : numbers(n)) {
    x.push_back(static_cast<T>(v));
    truth += static_cast<float>(x.back());
  }
  float sum = 0;
  launch(block_sum<T, 8>, 5, 256, 0, x.data(), &sum, n);
  return std::abs(sum - truth) < 1e-2;
}

bool tree_maximum() {
  const std::vector<float> x = numbers(1000);
  std::vector<float> out(8);
  launch(tree_max, 8, 128, 128 * sizeof(float), x.data(), out.data(), 1000);
  return *std::max_element(out.begin(), out.end()) == *std::max_element(x.begin(), x.end());
}

bool compaction() {
  std::vector<int> x(1000), out(334), truth;
  std::iota(x.begin(), x.end(), 0);
  for (int v : x)
    if (v % 3 == 0) truth.push_back(v);
  int count = 0;
  launch(compact, 8, 128, 0, x.data(), out.data(), &count, 1000);
  std::sort(out.begin(), out.end());
  return count == 334 && out == truth;
}

bool warp_shuffles() {
  std::vector<int> x(64), out(3 * 64);
  std::iota(x.begin(), x.end(), 1);
  launch(shuffles, 1, 64, 0, x.data(), out.data());
  bool right = true;
  for (int t = 0; t < 64; ++t) {
    const int warp = t / 32 * 32, half = t / 16 * 16;
    right = right && out[t] == std::accumulate(x.begin() + warp, x.begin() + t + 1, 0);
    right = right && out[64 + t] == std::accumulate(x.begin() + half, x.begin() + half + 16, 0);
    right = right && out[128 + t] == x[t / 8 * 8 + 5];
  }
  return right;
}

bool all_votes() {
  int wrong = 0;
  launch(votes, 2, 52, 0, &wrong);
  return wrong == 0;
}

bool every_thread_runs_once() {
  std::vector<int> visits(3 * 2 * 4 * 5 * 3 * 2);
  launch(shape, dim3(3, 2, 4), dim3(5, 3, 2), 0, visits.data());
  return visits == std::vector<int>(visits.size(), 1);
}

bool vector_types() {
  std::vector<float4> x(100, make_float4(1, 2, 3, 4)), y(100);
  launch(vectors, 1, 128, 0, x.data(), y.data(), 100);
  return y[99].x == 4 && y[99].y == 3 && y[99].z == 2 && y[99].w == 2;
}

bool atomic_operations() {
  int cells[5] = {0, 0, 0, 0, 0};
  unsigned long long bits[2] = {0, ~0ull};
  launch(atomics, 1, 96, 0, cells, bits);
  return cells[0] == 95 && cells[1] == -95 && cells[2] == -96 && cells[3] == 7 && cells[4] >= 1 && cells[4] <= 96 &&
         bits[0] == ~0ull && bits[1] == 0;
}

bool shared_per_instantiation() {
  double out = 0;
  launch(two_boxes, 1, 40, 0, &out);
  return out == 1.75;
}

bool reversed(void (*kernel)(const float*, float*), int rounds) {
  const std::vector<float> x = numbers(64 * rounds);
  std::vector<float> out(x.size());
  launch(kernel, 1, 64, 0, x.data(), out.data());
  bool right = true;
  for (int i = 0; i < 64 * rounds; ++i) right = right && out[i] == x[i / 64 * 64 + 63 - i % 64];
  return right;
}

bool warps_reversed() {
  const std::vector<float> x = numbers(128);
  std::vector<float> out(128);
  launch(warp_tile, 1, 64, 0, x.data(), out.data());
  bool right = true;
  for (int i = 0; i < 128; ++i) right = right && out[i] == x[i ^ 31];
  return right;
}

bool counted() {
  int count = 0;
  launch(lost_update, 1, 64, 0, &count);
  return count == 64;
}

bool run(void (*kernel)(int*), dim3 grid, dim3 block, size_t shared_bytes = 0) {
  std::vector<int> out(2048);
  launch(kernel, grid, block, shared_bytes, out.data());
  return true;
}

bool works_after_a_report() {
  for (int i = 0; i < 3; ++i) {
    try {
      run(deadlock, 1, 96);
      return false;
    } catch (const cuda_emulation::Error&) {
    }
  }
  return block_sums<float>() && warp_shuffles();
}

const std::map<std::string, std::function<bool()>> kCases = {
    {"block_sum_float", block_sums<float>},
    {"block_sum_half", block_sums<__half>},
    {"block_sum_bfloat16", block_sums<__nv_bfloat16>},
    {"tree_max", tree_maximum},
    {"compact", compaction},
    {"shuffles", warp_shuffles},
    {"votes", all_votes},
    {"shape", every_thread_runs_once},
    {"vectors", vector_types},
    {"atomics", atomic_operations},
    {"two_boxes", shared_per_instantiation},
    {"warp_tile", warps_reversed},
    {"works_after_a_report", works_after_a_report},
    {"missing_barrier", [] { return reversed(missing_barrier, 1); }},
    {"missing_second_barrier", [] { return reversed(missing_second_barrier, 2); }},
    {"lost_update", counted},
    {"two_blocks_one_word", [] { return run(two_blocks_one_word, 2, 32); }},
    {"read_beside_atomic", [] { return run(read_beside_atomic, 1, 32); }},
    {"shuffle_for_syncwarp",
     [] {
       const std::vector<float> x = numbers(64);
       std::vector<float> out(64);
       launch(shuffle_for_syncwarp, 1, 64, 0, x.data(), out.data());
       return true;
     }},
    {"divergent_barrier", [] { return run(divergent_barrier, 1, 32); }},
    {"divergent_warp", [] { return run(divergent_warp, 1, 32); }},
    {"mask_without_caller", [] { return run(mask_without_caller, 1, 32); }},
    {"mask_with_ended_lanes", [] { return run(mask_with_ended_lanes, 1, 32); }},
    {"read_outside_mask", [] { return run(read_outside_mask, 1, 32); }},
    {"read_missing_lane", [] { return run(read_missing_lane, 1, 40); }},
    {"deadlock", [] { return run(deadlock, 1, 32); }},
    {"behind_static", [] { return run(behind_static, 1, 32); }},
    {"behind_dynamic", [] { return run(behind_dynamic, 1, 32, 32 * sizeof(float)); }},
    {"read_behind",
     [] {
       const std::vector<float> x(64);
       std::vector<float> out(64);
       launch(read_behind, 1, 64, 0, x.data(), out.data());
       return true;
     }},
    {"int_offset", [] { return run(int_offset, 1, 32); }},
    {"misaligned_vector", [] { return run(misaligned_vector, 1, 32); }},
    {"too_much_static", [] { return run(too_much_static, 1, 32); }},
    {"too_much_dynamic", [] { return run(nothing, 1, 32, 164 * 1024); }},
    {"too_many_threads", [] { return run(nothing, 1, dim3(32, 33)); }},
    {"too_deep_block", [] { return run(nothing, 1, dim3(1, 1, 65)); }},
    {"empty_block", [] { return run(nothing, 1, 0); }},
    {"empty_grid", [] { return run(nothing, 0, 32); }},
    {"too_high_grid", [] { return run(nothing, dim3(1, 65536), 32); }},
    {"large_parameters",
     [] {
       launch(large_parameters, 1, 32, 0, nullptr, Large{});
       return true;
     }},
};

}  // namespace

int main(int argc, char** argv) {
  const auto found = kCases.find(argc > 1 ? argv[1] : "");
  if (found == kCases.end()) return 2;
  const int order = argc > 2 ? std::atoi(argv[2]) : 0;
  const unsigned seed = argc > 3 ? static_cast<unsigned>(std::atoi(argv[3])) : 1;
  cuda_emulation::schedule() = {static_cast<cuda_emulation::Order>(order), seed};
  try {
    std::puts(found->second() ? "right" : "wrong");
  } catch (const cuda_emulation::Error& error) {
    std::puts(error.what());
  }
}
