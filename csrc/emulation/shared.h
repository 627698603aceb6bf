// Shared memory of one block: filled with NaN bits, so that a value nobody wrote shows, and fenced by guard bytes, so
// that a write behind the end shows.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "emulation/report.h"
#include "emulation/sanitizers.h"

namespace cuda_emulation {

class SharedMemory {
 public:
  static constexpr size_t kStaticLimit = 48 * 1024;
  static constexpr size_t kLimit = 163 * 1024;  // static and dynamic on sm_80; sm_90 and sm_100 have 227 KiB

  explicit SharedMemory(size_t dynamic_bytes) : dynamic_bytes_(dynamic_bytes) {
    check_limits("the launch");
    variables_.emplace_back(nullptr, "dynamic shared memory", dynamic_bytes);
  }

  void* dynamic() { return variables_.front().data(); }

  // The variable of a declaration; `key` is one address per declaration and template instantiation.
  void* get(const void* key, const char* name, size_t bytes) {
    for (Variable& v : variables_)
      if (v.key == key) return v.data();
    const Bookkeeping own;
    static_bytes_ += bytes;
    check_limits(name);
    return variables_.emplace_back(key, name, bytes).data();
  }

  void check_guards(const std::string& where) const {
    for (const Variable& v : variables_)
      for (size_t i = v.bytes; i < v.bytes + kGuard; ++i)
        if (v.data()[i] != kGuardByte) throw Error(v.name + " was written behind its end" + where);
  }

 private:
  static constexpr size_t kGuard = 64, kAlign = 128;
  static constexpr unsigned char kGuardByte = 0xA5, kNaNByte = 0xFF;

  struct Variable {
    Variable(const void* key, const char* name, size_t bytes)
        : key(key), name(name), bytes(bytes), memory(new unsigned char[bytes + kGuard + kAlign]) {
      std::memset(data(), kNaNByte, bytes);
      std::memset(data() + bytes, kGuardByte, kGuard);
    }
    unsigned char* data() const {
      const uintptr_t address = reinterpret_cast<uintptr_t>(memory.get());
      return memory.get() + (kAlign - address % kAlign) % kAlign;
    }
    const void* key;
    std::string name;
    size_t bytes;
    std::unique_ptr<unsigned char[]> memory;
  };

  void check_limits(const std::string& at) const {
    if (static_bytes_ > kStaticLimit) throw Error("static shared memory over 48 KiB at " + at);
    if (static_bytes_ + dynamic_bytes_ > kLimit) throw Error("shared memory over the 163 KiB of sm_80 at " + at);
  }

  std::vector<Variable> variables_;
  size_t dynamic_bytes_, static_bytes_ = 0;
};

}  // namespace cuda_emulation
