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

// Slot of a key: CRC16 (XMODEM) of the text between the first { and the next }; if there is none,
// of the whole key. Source: Valkey Cluster specification, "Key distribution model".
std::uint16_t slot_of(std::string_view key);

// "host:port", "[v6]:port" or "unix:/path". With port 0, `host` is the path of a Unix socket.
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

// Reads a reply to CLUSTER SLOTS; nullopt if it is another reply or has no ranges. `asked` replaces
// a host name that the server does not know.
std::optional<std::vector<SlotRange>> read_slots(const resp::Reply& reply, const Endpoint& asked);

enum class ErrorKind : std::uint8_t {
  kMoved,     // another server owns the slot now
  kAsk,       // the slot is migrating: send this operation to the other server
  kTryAgain,  // the slot is migrating and its keys are on both servers: retry soon
  kLater,     // no server serves the slot now, or a replica answered: retry soon, a few times
  kQuota,     // the server is full
  kCorrupt,   // the key has a value of another type
  kMisuse,    // a function refuses the whole call: larger than any client's call
  kRefused,   // the server rejects the credentials or lacks the functions
  kOther,
};

struct ServerError {
  ErrorKind kind = ErrorKind::kOther;
  std::uint16_t slot = 0;  // kMoved, kAsk
  Endpoint to;             // kMoved, kAsk
};

ServerError read_error(std::string_view text, const Endpoint& asked);

}  // namespace neve
