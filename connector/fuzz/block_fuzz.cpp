// A header that is accepted is written as the same bytes, and none of its bits may be another.

#include <cstring>

#include "block.h"
#include "input.h"

using namespace neve;

namespace {

using Raw = std::array<std::byte, kHeaderBytes>;

Raw raw_of(std::string_view text) {
  Raw raw{};
  std::memcpy(raw.data(), text.data(), std::min(text.size(), raw.size()));
  return raw;
}

Raw encoded(const BlockHeader& header) {
  Raw raw;
  encode_header(header, raw);
  return raw;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzzing::Input input(data, size);
  const unsigned bit = input.byte() | (input.byte() & 1U) << 8;
  const auto raw = raw_of(input.rest());
  if (const auto header = decode_header(raw)) {
    CLAIM(header->payload_bytes > 0 && header->payload_bytes <= kMaxPayloadBytes);
    CLAIM(encoded(*header) == raw);
  }
  // The input as fields: what it takes a checksum to reach.
  BlockHeader header;
  header.codec = static_cast<Codec>(bit % 2);
  std::memcpy(header.id.data(), raw.data() + 8, sizeof header.id);
  std::memcpy(header.parent.data(), raw.data() + 24, sizeof header.parent);
  std::memcpy(&header.tokens, raw.data() + 40, sizeof header.tokens);
  std::memcpy(&header.payload_bytes, raw.data() + 44, sizeof header.payload_bytes);
  std::memcpy(&header.payload_checksum, raw.data() + 48, sizeof header.payload_checksum);
  std::memcpy(header.tag.data(), raw.data() + 56, sizeof header.tag);
  auto good = encoded(header);
  const auto back = decode_header(good);
  const bool fits = header.payload_bytes > 0 && header.payload_bytes <= kMaxPayloadBytes;
  CLAIM(back.has_value() == fits);
  if (back) CLAIM(*back == header);
  good[bit / 8] ^= std::byte(1U << bit % 8);
  CLAIM(!decode_header(good));
  return 0;
}
