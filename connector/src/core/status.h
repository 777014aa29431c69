// What became of one block or one command. Mirrored by neve.datapath.status.Status; a test
// compares both.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

namespace neve {

enum class Status : std::uint8_t {
  kOk = 0,           // loaded and verified; stored; answered
  kPresent = 1,      // put: an equal block was there already
  kEvicted = 2,      // get: no such key; put: it went between SET and commit
  kCorrupt = 3,      // the value is not the block it should be
  kQuota = 4,        // put: refused by the tenant's quota, or the server is full
  kTimeout = 5,      // the deadline passed
  kBreaker = 6,      // not asked: the primary's breaker is open
  kUnavailable = 7,  // the connection could not be made, or broke
  kRefused = 8,      // the server does not know us or our functions
  kDropped = 9,      // not asked: too many bytes are waiting already
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
