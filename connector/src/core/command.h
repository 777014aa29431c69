// Commands in RESP form. Pure.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace neve::command {

inline void begin(std::string& out, std::size_t arguments) {
  out += '*';
  out += std::to_string(arguments);
  out += "\r\n";
}

// Appends the length line of an argument of `size` bytes; the caller appends bytes and CRLF.
inline void length(std::string& out, std::size_t size) {
  out += '$';
  out += std::to_string(size);
  out += "\r\n";
}

inline void argument(std::string& out, std::string_view value) {
  length(out, value.size());
  out += value;
  out += "\r\n";
}

template <std::unsigned_integral T>
void argument(std::string& out, T value) {
  argument(out, std::string_view(std::to_string(value)));
}

inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace neve::command
