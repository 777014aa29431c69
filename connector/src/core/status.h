// Outcome of one block or one command. Mirrored by neve.datapath.status.Status; a test compares
// both.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

namespace neve {

enum class Status : std::uint8_t {
  kOk = 0,           // loaded and verified; stored; answered
  kPresent = 1,      // put: the same block was already stored
  kEvicted = 2,      // get: no such key; put: the value vanished between SET and commit
  kCorrupt = 3,      // the value is not the expected block
  kQuota = 4,        // put: refused by the tenant's quota, or the server is full
  kTimeout = 5,      // the deadline passed
  kBreaker = 6,      // not sent: the primary's breaker is open
  kUnavailable = 7,  // the connection failed or broke
  kRefused = 8,      // the server rejects the credentials or lacks the functions
  kDropped = 9,      // not sent: too many bytes in flight
  kCancelled = 10,
  kClosed = 11,
  kError = 12,  // another error reply
  kPending = 255,
};

inline constexpr std::array<std::pair<std::string_view, Status>, 14> kStatusNames{{
    {"OK", Status::kOk},
    {"PRESENT", Status::kPresent},
    {"EVICTED", Status::kEvicted},
    {"CORRUPT", Status::kCorrupt},
    {"QUOTA", Status::kQuota},
    {"TIMEOUT", Status::kTimeout},
    {"BREAKER", Status::kBreaker},
    {"UNAVAILABLE", Status::kUnavailable},
    {"REFUSED", Status::kRefused},
    {"DROPPED", Status::kDropped},
    {"CANCELLED", Status::kCancelled},
    {"CLOSED", Status::kClosed},
    {"ERROR", Status::kError},
    {"PENDING", Status::kPending},
}};

}  // namespace neve
