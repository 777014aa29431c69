#include "block.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "checksum.h"

namespace neve {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

// Magic, version 1, kind 0 (a prefix), checksum XXH3-64; others are rejected. The codec follows.
constexpr std::array<std::byte, kCodecAt> kStart{std::byte{'N'}, std::byte{'V'}, std::byte{'B'},
                                                 std::byte{'1'}, std::byte{1},   std::byte{0},
                                                 std::byte{1}};

template <typename T>
void put(RawHeader out, std::size_t at, const T& value) {
  std::memcpy(out.data() + at, &value, sizeof value);
}

template <typename T>
void take(ConstRawHeader raw, std::size_t at, T& value) {
  std::memcpy(&value, raw.data() + at, sizeof value);
}

std::uint32_t header_check(ConstRawHeader raw) {
  return static_cast<std::uint32_t>(checksum(raw.first<kHeaderChecksumAt>()));
}

}  // namespace

void encode_header(const BlockHeader& header, RawHeader out) {
  put(out, 0, kStart);
  put(out, kCodecAt, header.codec);
  put(out, kIdAt, header.id);
  put(out, kParentAt, header.parent);
  put(out, kTokensAt, header.tokens);
  put(out, kPayloadBytesAt, header.payload_bytes);
  put(out, kPayloadChecksumAt, header.payload_checksum);
  put(out, kSpaceTagAt, header.tag);
  put(out, kHeaderChecksumAt, header_check(out));
}

std::optional<BlockHeader> decode_header(ConstRawHeader raw) {
  if (!std::equal(kStart.begin(), kStart.end(), raw.begin())) return std::nullopt;
  const auto codec = std::to_integer<std::uint8_t>(raw[kCodecAt]);
  if (!is_known(codec)) return std::nullopt;
  std::uint32_t check = 0;
  take(raw, kHeaderChecksumAt, check);
  if (check != header_check(raw)) return std::nullopt;
  BlockHeader header;
  header.codec = static_cast<Codec>(codec);
  take(raw, kIdAt, header.id);
  take(raw, kParentAt, header.parent);
  take(raw, kTokensAt, header.tokens);
  take(raw, kPayloadBytesAt, header.payload_bytes);
  take(raw, kPayloadChecksumAt, header.payload_checksum);
  take(raw, kSpaceTagAt, header.tag);
  if (header.payload_bytes == 0 || header.payload_bytes > kMaxPayloadBytes) return std::nullopt;
  return header;
}

}  // namespace neve
