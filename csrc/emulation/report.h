// What the emulation says when a kernel breaks a rule of CUDA.
#pragma once

#include <cstdint>
#include <cstdio>
#include <source_location>
#include <stdexcept>
#include <string>

#include "emulation/types.h"

namespace cuda_emulation {

using Site = std::source_location;

struct Error : std::runtime_error {
  explicit Error(const std::string& what) : std::runtime_error("CUDA emulation: " + what) {}
};

inline bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::string_view(a.file_name()) == b.file_name();
}

inline std::string text(const Site& site) {
  const std::string path = site.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line());
}

inline std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

inline std::string text(const dim3& size) { return text(uint3{size.x, size.y, size.z}); }

// A GPU refuses an access that is not aligned to its own size.
inline void check_aligned(const void* address, size_t bytes, const Site& at = Site::current()) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    throw Error("misaligned access of " + std::to_string(bytes) + " bytes at " + text(at));
}

inline std::string hex(unsigned mask) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "0x%08x", mask);
  return buffer;
}

}  // namespace cuda_emulation
