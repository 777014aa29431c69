// What the fuzzers share: taking an input apart, and claims that end the run when they are false.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#define CLAIM(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)

namespace neve::fuzzing {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size)
      : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  std::uint8_t byte() {  // 0 when there are no more
    if (rest_.empty()) return 0;
    const auto value = static_cast<std::uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return value;
  }
  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

// Cuts a text into pieces whose sizes follow from a seed; later ones grow, so that there are few.
class Pieces {
 public:
  Pieces(std::string_view text, std::uint8_t seed) : rest_(text), seed_(seed) {}

  bool empty() const { return rest_.empty(); }
  std::string_view next() {
    state_ = state_ * 5 + seed_ + 1;
    const std::size_t most = seed_ < 64 ? 1 + seed_ : std::size_t{1} << (seed_ % 16);
    const auto piece = rest_.substr(0, (1 + state_ % most) << count_++ / 32);
    rest_.remove_prefix(piece.size());
    return piece;
  }

 private:
  std::string_view rest_;
  std::uint8_t seed_;
  std::uint32_t state_ = 0;
  unsigned count_ = 0;
};

// A copy in a block of its own, so that a sanitizer sees any look beyond its ends.
inline std::vector<char> alone(std::string_view text) { return {text.begin(), text.end()}; }

}  // namespace neve::fuzzing
