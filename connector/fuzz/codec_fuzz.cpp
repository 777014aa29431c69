// Whatever is decoded, nothing outside of the room is written; what was encoded comes back.

#include <cstring>
#include <vector>

#include "codec.h"
#include "input.h"
#include "quantize.h"

using namespace neve;

namespace {

std::span<const std::byte> bytes_of(const std::vector<char>& text) {
  return std::as_bytes(std::span(text));
}

// With loss: any numbers are encoded, and what is decoded is encoded to numbers as near.
void quantize_anything(std::span<const std::byte> rest, std::size_t tokens, std::size_t size) {
  for (const auto number : {Number::kBf16, Number::kFloat}) {
    const std::size_t width = number == Number::kBf16 ? 2 : 4;
    const std::size_t matrices = rest.size() / (tokens * size * width);
    std::vector<std::byte> plain(rest.begin(), rest.begin() + matrices * tokens * size * width);
    std::vector<std::byte> back(plain.size());
    const std::size_t numbers = plain.size() / width;
    for (const auto codec : {Lossy::kInt8, Lossy::kFp8}) {
      std::vector<std::byte> encoded(numbers + matrices * tokens * 2);
      CLAIM(quantize(codec, number, size, plain, encoded) == (numbers > 0));
      CLAIM(dequantize(codec, number, size, encoded, back) == (numbers > 0));
    }
    for (const auto part : {Part::kKeys, Part::kValues}) {
      const std::size_t groups = part == Part::kKeys ? size : tokens;
      std::vector<std::byte> encoded(numbers / 2 + matrices * groups * 4);
      const bool fits = numbers > 0 && size % 2 == 0 && numbers / 2 % 2 == 0;
      CLAIM(quantize_int4(part, number, tokens, size, plain, encoded) == fits);
      CLAIM(dequantize_int4(part, number, tokens, size, encoded, back) == fits);
    }
  }
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
  quantize_anything(bytes_of(rest), 1 + claimed % 40, 1 + claimed / 40 % 200);
  return 0;
}
