// XXH3-64 with AVX2 where the CPU has it. Pure; for any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace neve {

struct ChecksumKernel;  // one build of XXH3: plain or AVX2

std::uint64_t checksum(std::span<const std::byte> data);

// Streaming XXH3-64. One thread at a time.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void reset();
  void update(std::span<const std::byte> piece);
  std::uint64_t digest() const;

 private:
  const ChecksumKernel& kernel_;
  void* state_;
};

// Name of the build in use, for reports: "avx2" or "base" (SSE2, NEON).
const char* checksum_kernel_name();

}  // namespace neve
