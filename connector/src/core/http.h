// The part of HTTP/1.1 that ranged GETs need: URLs, requests, response heads. Pure; for any thread.
// Source: RFC 9110, RFC 9112, RFC 3986.
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
  std::string authority;  // for the Host line: without the scheme's default port
  std::string target;     // path and query

  bool operator==(const Url&) const = default;
};

// nullopt for other schemes, and for characters that would break the lines of a request.
std::optional<Url> read_url(std::string_view text);

// Bytes of an object, both ends inclusive.
struct Range {
  std::uint64_t first = 0;
  std::uint64_t last = 0;

  std::uint64_t size() const { return last - first + 1; }
  bool operator==(const Range&) const = default;
};

std::string range_request(const Url& url, const Range& range);

// Parses "bytes 0-9/100" or "bytes 0-9/*"; nullopt if it is neither.
std::optional<Range> read_content_range(std::string_view text);

// The head of a response.
struct Head {
  int status = 0;                       // 0: no response
  std::optional<std::uint64_t> length;  // of the body; nullopt: chunked, or until the close
  bool chunked = false;
  bool keeps = false;  // the connection may be reused after the body was read
  std::optional<Range> range;
  std::uint32_t retry_after_s = 0;
  std::string date;

  bool operator==(const Head&) const = default;
};

enum class Progress : std::uint8_t { kNeedMore, kDone, kBad };

// Reads the head at the beginning of `text`; with kDone, `used` is its length.
Progress read_head(std::string_view text, std::size_t& used, Head& head);

}  // namespace neve::http
