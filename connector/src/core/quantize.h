// Lossy codecs of KV on the CPU: a byte a number, and a bf16 scale for each vector of them. Pure;
// for any thread. neve.engine.device.lossy says the layout, and computes the same on a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace neve {

enum class Lossy : std::uint8_t { kInt8, kFp8 };
enum class Number : std::uint8_t { kBf16, kFloat };

// Both return false unless `plain` is whole vectors of `vector` numbers, and `encoded` has a byte
// for each number and two for each vector.
bool quantize(Lossy codec, Number number, std::size_t vector, std::span<const std::byte> plain,
              std::span<std::byte> encoded);
bool dequantize(Lossy codec, Number number, std::size_t vector, std::span<const std::byte> encoded,
                std::span<std::byte> plain);

// int4 of matrices, each a head's `tokens` rows of `size` numbers: half a byte a number, then a
// bf16 scale of each group, then a bf16 zero point of each. A group is a channel of keys, a token
// of values. Both return false unless `plain` is whole matrices, `size` is even and at most 1024,
// and `encoded` has just these bytes, both aligned to their numbers. `neve.engine.device.int4`
// computes the same.
enum class Part : std::uint8_t { kKeys, kValues };

bool quantize_int4(Part part, Number number, std::size_t tokens, std::size_t size,
                   std::span<const std::byte> plain, std::span<std::byte> encoded);
bool dequantize_int4(Part part, Number number, std::size_t tokens, std::size_t size,
                     std::span<const std::byte> encoded, std::span<std::byte> plain);

}  // namespace neve
