// HTTP/1.1 as far as ranged GETs need it: addresses, requests, heads of answers. Pure; for any
// thread. Source: RFC 9110, RFC 9112, RFC 3986.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "slots.h"

namespace neve::http {

inline constexpr std::size_t kMaxHeadBytes = std::size_t{32} << 10;

struct Url {
  bool tls = false;
  Endpoint where;         // an IPv6 address without brackets
  std::string authority;  // as the Host line has it: without the port that is the scheme's own
  std::string target;     // path and query

  bool operator==(const Url&) const = default;
};

// Nothing for another scheme, and for what would break the lines of a request.
std::optional<Url> read_url(std::string_view text);

// Bytes of an object, both inclusive.
struct Range {
  std::uint64_t first = 0;
  std::uint64_t last = 0;

  std::uint64_t size() const { return last - first + 1; }
  bool operator==(const Range&) const = default;
};

std::string range_request(const Url& url, const Range& range);

// "bytes 0-9/100" or "bytes 0-9/*"; nothing when it names no bytes.
std::optional<Range> read_content_range(std::string_view text);

// The head of an answer.
struct Head {
  int status = 0;                       // 0: none came
  std::optional<std::uint64_t> length;  // of the body; nothing where only its end tells
  bool chunked = false;
  bool keeps = false;  // the connection may be used again once the body was read
  std::optional<Range> range;
  std::uint32_t retry_after_s = 0;
  std::string date;

  bool operator==(const Head&) const = default;
};

enum class Progress : std::uint8_t { kNeedMore, kDone, kBad };

// Reads the head that `text` begins with; `used` bytes of it when that is kDone.
Progress read_head(std::string_view text, std::size_t& used, Head& head);

}  // namespace neve::http
