// Stops asking a server that is in trouble, and finds out when it is well again. For any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "clock.h"

namespace neve {

inline constexpr int kFailuresToOpen = 3;

enum class BreakerState : std::uint8_t { kClosed, kOpen, kHalfOpen };

// Opens after three failures in a row, for 1 s growing to 30 s; then lets one probe through. Each
// `allow` that was true is followed by one of `succeed`, `fail` or `forgive`.
class Breaker {
 public:
  // Whether to ask now. The first true after a pause is the probe, and the only one.
  bool allow(Time now);
  void succeed();
  // Whether this failure opened it, after it was closed. Failures of one `serial` (a batch on
  // several connections) count once; 0 names no batch.
  bool fail(std::uint64_t serial, Time now);
  // The question ended without saying anything of the server; the next one may probe.
  void forgive();
  BreakerState state() const;
  // True while asking would be refused. Unlike `allow`, takes no probe.
  bool is_open(Time now) const;

 private:
  mutable std::mutex mutex_;
  BreakerState state_ = BreakerState::kClosed;
  int failures_ = 0;
  std::uint64_t last_serial_ = 0;
  Duration pause_ = std::chrono::seconds(1);
  Time until_{};
  // True while `succeed` would change nothing, so that each good reply need not take the mutex. A
  // stale read only delays or repeats a `succeed`: relaxed suffices.
  std::atomic<bool> calm_{true};
};

}  // namespace neve
