// Hash slots of a Valkey Cluster. Pure; for any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "resp.h"

namespace neve {

inline constexpr std::size_t kSlots = 16384;

// Slot of a key: CRC16 (XMODEM) of what stands between the first { and the next }, if anything
// does, else of the whole key. Source: Valkey Cluster specification, "Key distribution model".
std::uint16_t slot_of(std::string_view key);

// "host:port", "[v6]:port" or "unix:/path". `host` is the path of a Unix socket when port is 0.
struct Endpoint {
  std::string host;
  std::uint16_t port = 0;

  bool is_unix() const { return port == 0; }
  std::string name() const;
  bool operator==(const Endpoint&) const = default;
};

std::optional<Endpoint> read_endpoint(std::string_view text);

struct SlotRange {
  std::uint16_t first = 0;
  std::uint16_t last = 0;
  Endpoint primary;
};

// Reads a reply to CLUSTER SLOTS; nothing when it is none or has no ranges. `asked` stands in where
// the server does not know its own host name.
std::optional<std::vector<SlotRange>> read_slots(const resp::Reply& reply, const Endpoint& asked);

enum class ErrorKind : std::uint8_t {
  kMoved,     // the slot lives elsewhere now
  kAsk,       // this one time elsewhere: the slot is on its way
  kTryAgain,  // the slot's keys are on their way, some here, some there: ask again soon
  kLater,     // nobody serves the slot now, or a replica answered: ask again soon, but not for long
  kQuota,     // the server is full
  kCorrupt,   // another type of value stands there
  kMisuse,    // a function refuses the call as a whole: more than a client ever sends
  kRefused,   // the server does not know us, or our functions
  kOther,
};

struct ServerError {
  ErrorKind kind = ErrorKind::kOther;
  std::uint16_t slot = 0;  // kMoved, kAsk
  Endpoint to;             // kMoved, kAsk
};

ServerError read_error(std::string_view text, const Endpoint& asked);

}  // namespace neve
