#include "quantize.h"

#include <cstring>
#include <optional>

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

// Where a matrix's codes, scales and zero points are.
struct Int4Layout {
  std::size_t matrices, numbers, groups;  // groups and numbers: of one matrix

  std::size_t codes_at(std::size_t matrix) const { return matrix * numbers / 2; }
  std::size_t scales_at(std::size_t matrix) const {
    return codes_at(matrices) + matrix * groups * kScaleBytes;
  }
  std::size_t zeros_at(std::size_t matrix) const {
    return scales_at(matrices) + matrix * groups * kScaleBytes;
  }
  std::size_t bytes() const { return zeros_at(matrices); }
};

bool is_aligned(std::span<const std::byte> memory, std::size_t width) {
  return reinterpret_cast<std::uintptr_t>(memory.data()) % width == 0;
}

// nullopt: the sizes do not fit each other, or memory is not aligned to the numbers.
std::optional<Int4Layout> int4_layout(Part part, Number number, std::size_t tokens,
                                      std::size_t size, std::span<const std::byte> plain,
                                      std::span<const std::byte> encoded) {
  const std::size_t width = number == Number::kBf16 ? 2 : 4;
  if (tokens == 0 || size == 0 || size % 2 != 0 || size > kMostChannels) return std::nullopt;
  if (tokens > plain.size() || plain.empty()) return std::nullopt;
  const std::size_t numbers = tokens * size;
  if (plain.size() % (numbers * width) != 0) return std::nullopt;
  const Int4Layout layout{plain.size() / width / numbers, numbers,
                          part == Part::kKeys ? size : tokens};
  const bool fits = encoded.size() == layout.bytes() && layout.codes_at(layout.matrices) % 2 == 0;
  const bool aligned = is_aligned(plain, width) && is_aligned(encoded, kScaleBytes);
  return fits && aligned ? std::optional(layout) : std::nullopt;
}

template <typename Plain, typename Function>
void encode_int4(Function function, const Int4Layout& at, std::size_t tokens, std::size_t size,
                 std::span<const std::byte> plain, std::span<std::byte> encoded) {
  const auto* from = reinterpret_cast<const Plain*>(plain.data());
  auto* to = encoded.data();
  for (std::size_t i = 0; i < at.matrices; ++i) {
    function(from + i * at.numbers, reinterpret_cast<std::uint8_t*>(to + at.codes_at(i)),
             reinterpret_cast<std::uint16_t*>(to + at.scales_at(i)),
             reinterpret_cast<std::uint16_t*>(to + at.zeros_at(i)), tokens, size);
  }
}

template <typename Plain, typename Function>
void decode_int4(Function function, const Int4Layout& at, std::size_t tokens, std::size_t size,
                 std::span<const std::byte> encoded, std::span<std::byte> plain) {
  auto* to = reinterpret_cast<Plain*>(plain.data());
  const auto* from = encoded.data();
  for (std::size_t i = 0; i < at.matrices; ++i) {
    function(reinterpret_cast<const std::uint8_t*>(from + at.codes_at(i)),
             reinterpret_cast<const std::uint16_t*>(from + at.scales_at(i)),
             reinterpret_cast<const std::uint16_t*>(from + at.zeros_at(i)), to + i * at.numbers,
             tokens, size);
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

bool quantize_int4(Part part, Number number, std::size_t tokens, std::size_t size,
                   std::span<const std::byte> plain, std::span<std::byte> encoded) {
  const auto layout = int4_layout(part, number, tokens, size, plain, encoded);
  if (!layout) return false;
  const auto& use = kernel();
  if (number == Number::kBf16) {
    encode_int4<std::uint16_t>(part == Part::kKeys ? use.keys_from_bf16 : use.values_from_bf16,
                               *layout, tokens, size, plain, encoded);
  } else {
    encode_int4<float>(part == Part::kKeys ? use.keys_from_float : use.values_from_float, *layout,
                       tokens, size, plain, encoded);
  }
  return true;
}

bool dequantize_int4(Part part, Number number, std::size_t tokens, std::size_t size,
                     std::span<const std::byte> encoded, std::span<std::byte> plain) {
  const auto layout = int4_layout(part, number, tokens, size, plain, encoded);
  if (!layout) return false;
  const auto& use = kernel();
  if (number == Number::kBf16) {
    decode_int4<std::uint16_t>(part == Part::kKeys ? use.keys_to_bf16 : use.values_to_bf16, *layout,
                               tokens, size, encoded, plain);
  } else {
    decode_int4<float>(part == Part::kKeys ? use.keys_to_float : use.values_to_float, *layout,
                       tokens, size, encoded, plain);
  }
  return true;
}

}  // namespace neve
