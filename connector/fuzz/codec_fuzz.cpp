// Whatever is decoded, nothing outside of the room is written; what was encoded comes back.

#include <cstring>
#include <vector>

#include "codec.h"
#include "input.h"

using namespace neve;

namespace {

std::span<const std::byte> bytes_of(const std::vector<char>& text) {
  return std::as_bytes(std::span(text));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzzing::Input input(data, size);
  const unsigned width = 1U << input.byte() % 4;
  const std::size_t claimed = input.byte() | std::size_t{input.byte()} << 8;
  const auto rest = fuzzing::alone(input.rest());
  // As an encoded payload that somebody made up.
  std::vector<std::byte> room(claimed);
  shuffle_zstd_decode(bytes_of(rest), room);
  // As a payload.
  std::vector<std::byte> encoded(rest.size() + 64);
  const auto used = shuffle_zstd_encode(bytes_of(rest), width, 1, encoded);
  CLAIM(used.has_value());
  encoded.resize(*used);
  std::vector<std::byte> back(rest.size());
  CLAIM(shuffle_zstd_decode(encoded, back));
  CLAIM(back.empty() || std::memcmp(back.data(), rest.data(), back.size()) == 0);
  // Another length is refused, and so is a cut or longer text.
  back.push_back(std::byte{0});
  CLAIM(!shuffle_zstd_decode(encoded, back));
  back.pop_back();
  encoded.push_back(std::byte{0});
  CLAIM(!shuffle_zstd_decode(encoded, back));
  encoded.resize(*used - 1);
  CLAIM(!shuffle_zstd_decode(encoded, back));
  return 0;
}
