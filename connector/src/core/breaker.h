// Circuit breaker: stops requests to a failing server and probes for its recovery. For any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "clock.h"

namespace neve {

inline constexpr int kFailuresToOpen = 3;

enum class BreakerState : std::uint8_t { kClosed, kOpen, kHalfOpen };

// Opens after three failures in a row, for 1 s growing to 30 s; then lets one probe through. After
// `allow` returned true, the caller reports `succeed`, `fail` or `forgive`.
class Breaker {
 public:
  // Whether to send a request now. After a pause, true only for one request: the probe.
  bool allow(Time now);
  void succeed();
  // True if this failure opened a closed breaker. Failures of one `serial` (a batch on several
  // connections) count once; 0: no batch.
  bool fail(std::uint64_t serial, Time now);
  // The request ended without evidence about the server; the next one may probe.
  void forgive();
  BreakerState state() const;
  // True while `allow` would return false. Unlike `allow`, does not use up the probe.
  bool is_open(Time now) const;

 private:
  mutable std::mutex mutex_;
  BreakerState state_ = BreakerState::kClosed;
  int failures_ = 0;
  std::uint64_t last_serial_ = 0;
  Duration pause_ = std::chrono::seconds(1);
  Time until_{};
  // True while `succeed` would change nothing: spares each good reply the mutex. Relaxed: a stale
  // read only delays or repeats a `succeed`.
  std::atomic<bool> calm_{true};
};

}  // namespace neve
