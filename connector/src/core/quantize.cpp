#include "quantize.h"

#include <cstring>

#include "quantize_kernel.h"

namespace neve {
namespace {

const QuantizeKernel& kernel() {
#ifdef NEVE_AVX2
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return kAvx2Quantize;
#endif
  return kBaseQuantize;
}

constexpr std::size_t kScaleBytes = 2;

// 0: the sizes do not fit each other, or memory is not aligned to the numbers.
std::size_t vectors_of(Number number, std::size_t vector, std::span<const std::byte> plain,
                       std::span<const std::byte> encoded) {
  const std::size_t width = number == Number::kBf16 ? 2 : 4;
  if (vector == 0 || plain.size() % width != 0 || plain.size() / width % vector != 0) return 0;
  const std::size_t vectors = plain.size() / width / vector;
  const bool fits = encoded.size() == vectors * (vector + kScaleBytes);
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(plain.data()) % width == 0;
  return fits && is_aligned ? vectors : 0;
}

template <typename Plain, typename Function>
void encode(Function function, std::size_t vectors, std::size_t vector,
            std::span<const std::byte> plain, std::span<std::byte> encoded) {
  const auto* from = reinterpret_cast<const Plain*>(plain.data());
  auto* codes = reinterpret_cast<std::uint8_t*>(encoded.data());
  auto* scales = encoded.data() + vectors * vector;
  for (std::size_t i = 0; i < vectors; ++i) {
    const std::uint16_t scale = function(from + i * vector, codes + i * vector, vector);
    std::memcpy(scales + i * kScaleBytes, &scale, kScaleBytes);
  }
}

template <typename Plain, typename Function>
void decode(Function function, std::size_t vectors, std::size_t vector,
            std::span<const std::byte> encoded, std::span<std::byte> plain) {
  auto* to = reinterpret_cast<Plain*>(plain.data());
  const auto* codes = reinterpret_cast<const std::uint8_t*>(encoded.data());
  const auto* scales = encoded.data() + vectors * vector;
  for (std::size_t i = 0; i < vectors; ++i) {
    std::uint16_t scale = 0;
    std::memcpy(&scale, scales + i * kScaleBytes, kScaleBytes);
    function(codes + i * vector, scale, to + i * vector, vector);
  }
}

}  // namespace

bool quantize(Lossy codec, Number number, std::size_t vector, std::span<const std::byte> plain,
              std::span<std::byte> encoded) {
  const auto vectors = vectors_of(number, vector, plain, encoded);
  if (vectors == 0) return false;
  const auto& use = kernel();
  if (number == Number::kBf16) {
    encode<std::uint16_t>(codec == Lossy::kInt8 ? use.int8_from_bf16 : use.fp8_from_bf16, vectors,
                          vector, plain, encoded);
  } else {
    encode<float>(codec == Lossy::kInt8 ? use.int8_from_float : use.fp8_from_float, vectors, vector,
                  plain, encoded);
  }
  return true;
}

bool dequantize(Lossy codec, Number number, std::size_t vector, std::span<const std::byte> encoded,
                std::span<std::byte> plain) {
  const auto vectors = vectors_of(number, vector, plain, encoded);
  if (vectors == 0) return false;
  const auto& use = kernel();
  if (number == Number::kBf16) {
    decode<std::uint16_t>(codec == Lossy::kInt8 ? use.int8_to_bf16 : use.fp8_to_bf16, vectors,
                          vector, encoded, plain);
  } else {
    decode<float>(codec == Lossy::kInt8 ? use.int8_to_float : use.fp8_to_float, vectors, vector,
                  encoded, plain);
  }
  return true;
}

}  // namespace neve
