#include "slots.h"

#include <algorithm>
#include <array>

namespace neve {
namespace {

constexpr std::array<std::uint16_t, 256> crc16_table() {
  std::array<std::uint16_t, 256> table{};
  for (unsigned i = 0; i < 256; ++i) {
    unsigned crc = i << 8;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 0x8000) ? (crc << 1) ^ 0x1021 : crc << 1;
    table[i] = static_cast<std::uint16_t>(crc);
  }
  return table;
}

constexpr auto kCrc16 = crc16_table();

std::uint16_t crc16(std::string_view text) {
  unsigned crc = 0;
  for (const char c : text) {
    crc = (crc << 8) ^ kCrc16[((crc >> 8) ^ static_cast<unsigned char>(c)) & 0xFF];
  }
  return static_cast<std::uint16_t>(crc);
}

bool read_port(std::string_view text, std::uint16_t& port) {
  std::int64_t value = 0;
  if (!resp::read_integer(text, value) || value < 1 || value > 65535) return false;
  port = static_cast<std::uint16_t>(value);
  return true;
}

bool read_slot(const resp::Reply& reply, std::uint16_t& slot) {
  if (reply.type != resp::Type::kInteger || reply.integer < 0 ||
      reply.integer >= static_cast<std::int64_t>(kSlots)) {
    return false;
  }
  slot = static_cast<std::uint16_t>(reply.integer);
  return true;
}

// "MOVED 3999 host:port" and "ASK 3999 host:port".
bool read_redirect(std::string_view text, const Endpoint& asked, ServerError& error) {
  const auto first = text.find(' ');
  const auto second = text.find(' ', first + 1);
  if (first == std::string_view::npos || second == std::string_view::npos) return false;
  std::int64_t slot = 0;
  if (!resp::read_integer(text.substr(first + 1, second - first - 1), slot) || slot < 0 ||
      slot >= static_cast<std::int64_t>(kSlots)) {
    return false;
  }
  std::string where(text.substr(second + 1));
  if (where.starts_with(':')) {  // no host: the asked one's, which a Unix socket does not have
    if (asked.is_unix()) return false;
    where = asked.host + where;
  }
  const auto to = read_endpoint(where);
  if (!to || to->is_unix()) return false;
  error.slot = static_cast<std::uint16_t>(slot);
  error.to = *to;
  return true;
}

}  // namespace

std::uint16_t slot_of(std::string_view key) {
  if (const auto open = key.find('{'); open != std::string_view::npos) {
    const auto close = key.find('}', open + 1);
    if (close != std::string_view::npos && close > open + 1) {
      key = key.substr(open + 1, close - open - 1);
    }
  }
  return crc16(key) % kSlots;
}

std::string Endpoint::name() const {
  if (is_unix()) return "unix:" + host;
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::optional<Endpoint> read_endpoint(std::string_view text) {
  constexpr std::string_view kUnix = "unix:";
  if (text.starts_with(kUnix)) {
    if (text.size() == kUnix.size()) return std::nullopt;
    return Endpoint{std::string(text.substr(kUnix.size())), 0};
  }
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  auto host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  Endpoint endpoint{std::string(host), 0};
  if (host.empty() || !read_port(text.substr(colon + 1), endpoint.port)) return std::nullopt;
  return endpoint;
}

std::optional<std::vector<SlotRange>> read_slots(const resp::Reply& reply, const Endpoint& asked) {
  if (reply.type != resp::Type::kArray || reply.items.empty()) return std::nullopt;
  std::vector<SlotRange> ranges;
  for (const auto& row : reply.items) {
    SlotRange range;
    if (row.items.size() < 3 || !read_slot(row.items[0], range.first) ||
        !read_slot(row.items[1], range.last) || range.first > range.last) {
      return std::nullopt;
    }
    const auto& node = row.items[2].items;
    if (node.size() < 2 || node[1].integer < 1 || node[1].integer > 65535) return std::nullopt;
    const auto& host = node[0].text;
    const bool nameless = host.empty() || host == "?";
    if (nameless && asked.is_unix()) return std::nullopt;
    range.primary.host = nameless ? asked.host : host;
    range.primary.port = static_cast<std::uint16_t>(node[1].integer);
    ranges.push_back(std::move(range));
  }
  return ranges;
}

ServerError read_error(std::string_view text, const Endpoint& asked) {
  const auto code = text.substr(0, text.find(' '));
  ServerError error;
  if (code == "MOVED" || code == "ASK") {
    if (read_redirect(text, asked, error)) {
      error.kind = code == "MOVED" ? ErrorKind::kMoved : ErrorKind::kAsk;
    }
  } else if (code == "TRYAGAIN") {
    error.kind = ErrorKind::kTryAgain;
  } else if (code == "CLUSTERDOWN" || code == "MASTERDOWN" || code == "READONLY") {
    error.kind = ErrorKind::kLater;
  } else if (code == "OOM") {
    error.kind = ErrorKind::kQuota;
  } else if (code == "WRONGTYPE") {
    error.kind = ErrorKind::kCorrupt;
  } else if (code == "TOOMANY" || code == "BADKEYS") {
    error.kind = ErrorKind::kMisuse;
  } else if (code == "WRONGPASS" || code == "NOAUTH" || code == "NOPERM") {
    error.kind = ErrorKind::kRefused;
  } else {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : char(c); });
    if (lower.find("function not found") != std::string::npos) error.kind = ErrorKind::kRefused;
  }
  return error;
}

}  // namespace neve
