#include "http.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace neve::http {
namespace {

constexpr std::uint16_t kPlainPort = 80, kTlsPort = 443;
constexpr std::string_view kEnd = "\r\n\r\n";

template <typename Number>
bool read_number(std::string_view text, Number& number) {
  const auto* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, number);
  return error == std::errc{} && at == end && text.front() != '-';
}

bool is_same(std::string_view text, std::string_view lower) {
  return std::equal(text.begin(), text.end(), lower.begin(), lower.end(), [](char a, char b) {
    return (a >= 'A' && a <= 'Z' ? static_cast<char>(a - 'A' + 'a') : a) == b;
  });
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// Whether the comma-separated list `text` has `word`.
bool has_word(std::string_view text, std::string_view word) {
  while (!text.empty()) {
    const auto end = std::min(text.find(','), text.size());
    if (is_same(trimmed(text.substr(0, end)), word)) return true;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return false;
}

// "HTTP/1.1 206 Partial Content"
bool read_status_line(std::string_view line, Head& head) {
  constexpr std::size_t kStatusAt = 9, kStatusDigits = 3;
  if (!line.starts_with("HTTP/1.") || line.size() < kStatusAt + kStatusDigits) return false;
  if (line[kStatusAt - 1] != ' ' || (line[7] != '0' && line[7] != '1')) return false;
  const auto rest = line.substr(kStatusAt + kStatusDigits);
  if (!rest.empty() && rest.front() != ' ') return false;
  head.keeps = line[7] == '1';
  return read_number(line.substr(kStatusAt, kStatusDigits), head.status) && head.status >= 100;
}

bool read_field(std::string_view name, std::string_view value, Head& head) {
  if (is_same(name, "content-length")) {
    std::uint64_t length = 0;
    if (value.empty() || !read_number(value, length)) return false;
    if (head.length && *head.length != length) return false;
    head.length = length;
  } else if (is_same(name, "transfer-encoding")) {
    if (!is_same(value, "chunked")) return false;
    head.chunked = true;
  } else if (is_same(name, "connection")) {
    if (has_word(value, "close")) head.keeps = false;
  } else if (is_same(name, "content-range")) {
    head.range = read_content_range(value);
  } else if (is_same(name, "retry-after")) {
    if (value.empty() || !read_number(value, head.retry_after_s)) head.retry_after_s = 0;
  } else if (is_same(name, "date")) {
    head.date = value;
  }
  return true;
}

}  // namespace

std::optional<Url> read_url(std::string_view text) {
  Url url;
  if (text.starts_with("https://")) {
    url.tls = true;
    text.remove_prefix(8);
  } else if (text.starts_with("http://")) {
    text.remove_prefix(7);
  } else {
    return std::nullopt;
  }
  const auto is_bad = [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == '\x7f'; };
  if (std::any_of(text.begin(), text.end(), is_bad)) return std::nullopt;
  text = text.substr(0, text.find('#'));
  const auto path = std::min(text.find_first_of("/?"), text.size());
  const auto where = text.substr(0, path);
  if (!text.substr(path).starts_with('/')) url.target = '/';
  url.target += text.substr(path);

  // A colon behind the brackets of an IPv6 address, or the only one, precedes a port.
  const auto bracket = where.starts_with('[') ? where.find(']') : 0;
  if (bracket == std::string_view::npos || where.find('@') != std::string_view::npos) return {};
  const auto colon = where.find(':', bracket);
  const auto name = where.substr(0, colon);
  url.where.host = bracket > 0 ? name.substr(1, bracket - 1) : name;
  if (url.where.host.empty() || (bracket > 0 && name.size() != bracket + 1)) return std::nullopt;
  const auto own_port = url.tls ? kTlsPort : kPlainPort;
  url.where.port = own_port;
  if (colon != std::string_view::npos) {
    const auto port = where.substr(colon + 1);
    if (port.empty() || !read_number(port, url.where.port) || url.where.port == 0) return {};
  }
  url.authority = name;
  if (url.where.port != own_port) url.authority.append(":").append(std::to_string(url.where.port));
  return url;
}

std::string range_request(const Url& url, const Range& range) {
  return "GET " + url.target + " HTTP/1.1\r\nHost: " + url.authority +
         "\r\nRange: bytes=" + std::to_string(range.first) + "-" + std::to_string(range.last) +
         "\r\nAccept-Encoding: identity\r\n\r\n";
}

std::optional<Range> read_content_range(std::string_view text) {
  if (!text.starts_with("bytes ")) return std::nullopt;
  text.remove_prefix(6);
  text = text.substr(0, text.find('/'));
  const auto dash = text.find('-');
  if (dash == std::string_view::npos || dash == 0 || dash + 1 == text.size()) return std::nullopt;
  Range range;
  if (!read_number(text.substr(0, dash), range.first) ||
      !read_number(text.substr(dash + 1), range.last) || range.last < range.first) {
    return std::nullopt;
  }
  return range;
}

Progress read_head(std::string_view text, std::size_t& used, Head& head) {
  const auto end = text.substr(0, kMaxHeadBytes).find(kEnd);
  if (end == std::string_view::npos) {
    return text.size() < kMaxHeadBytes ? Progress::kNeedMore : Progress::kBad;
  }
  used = end + kEnd.size();
  head = {};
  bool is_first = true;
  for (auto lines = text.substr(0, end + 2); !lines.empty();) {
    const auto line = lines.substr(0, lines.find("\r\n"));
    lines.remove_prefix(line.size() + 2);
    if (std::exchange(is_first, false)) {
      if (!read_status_line(line, head)) return Progress::kBad;
      continue;
    }
    const auto colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0) return Progress::kBad;
    if (!read_field(line.substr(0, colon), trimmed(line.substr(colon + 1)), head)) {
      return Progress::kBad;
    }
  }
  // Contradictory framing: the end of the body is unknown.
  if (head.chunked && head.length) return Progress::kBad;
  // RFC 9112, 6.3: these end with their head, whatever its fields say of a body.
  if (head.status < 200 || head.status == 204 || head.status == 304) {
    head.length = 0;
    head.chunked = false;
  }
  return Progress::kDone;
}

}  // namespace neve::http
