// The 64-byte header of a stored block (docs/formats/block.md). Pure; for any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "codec.h"
#include "layout.h"

namespace neve {

using BlockId = std::array<std::byte, 16>;
using SpaceTag = std::array<std::byte, 4>;
using RawHeader = std::span<std::byte, kHeaderBytes>;
using ConstRawHeader = std::span<const std::byte, kHeaderBytes>;

struct BlockHeader {
  BlockId id{};
  BlockId parent{};
  std::uint32_t tokens = 0;
  std::uint32_t payload_bytes = 0;
  std::uint64_t payload_checksum = 0;
  SpaceTag tag{};
  Codec codec = Codec::kPlain;

  bool operator==(const BlockHeader&) const = default;
};

void encode_header(const BlockHeader& header, RawHeader out);

// nullopt if magic, version, kind, checksum kind, codec, header checksum or payload length is
// invalid. `payload_bytes` counts the payload before its codec, `payload_checksum` after it.
std::optional<BlockHeader> decode_header(ConstRawHeader raw);

}  // namespace neve
