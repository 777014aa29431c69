#include "checksum.h"

#include <new>

#include "checksum_kernel.h"

namespace neve {
namespace {

const ChecksumKernel& kernel() {
#ifdef NEVE_AVX2
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return kAvx2Kernel;
#endif
  return kBaseKernel;
}

}  // namespace

std::uint64_t checksum(std::span<const std::byte> data) {
  return kernel().once(data.data(), data.size());
}

Checksum::Checksum() : kernel_(kernel()), state_(kernel_.make()) {
  if (state_ == nullptr) throw std::bad_alloc();
  reset();
}

Checksum::~Checksum() { kernel_.free(state_); }

void Checksum::reset() { kernel_.reset(state_); }

void Checksum::update(std::span<const std::byte> piece) {
  kernel_.update(state_, piece.data(), piece.size());
}

std::uint64_t Checksum::digest() const { return kernel_.digest(state_); }

const char* checksum_kernel_name() { return kernel().name; }

}  // namespace neve
