// How a block's payload is encoded at rest (docs/formats/block.md, "Codecs"). Pure; for any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace neve {

enum class Codec : std::uint8_t {
  kPlain = 0,
  kShuffleZstd = 1,  // byte planes, then zstd: lossless
};

constexpr bool is_known(std::uint8_t codec) {
  return codec <= static_cast<std::uint8_t>(Codec::kShuffleZstd);
}

// Encodes `raw`, numbers of `width` bytes (1, 2, 4 or 8), into the beginning of `out`. Returns the
// bytes written; nullopt if they do not fit, so the caller keeps the payload as it is.
std::optional<std::size_t> shuffle_zstd_encode(std::span<const std::byte> raw, unsigned width,
                                               int level, std::span<std::byte> out);

// Fills `raw` exactly. False: `encoded` is damaged or of another length; `raw` is then garbage.
bool shuffle_zstd_decode(std::span<const std::byte> encoded, std::span<std::byte> raw);

}  // namespace neve
