// Deadlines are points on the monotonic clock, the one behind Python's time.monotonic().
#pragma once

#include <chrono>

namespace neve {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using Duration = Clock::duration;

inline constexpr Time kNever = Time::max();

// Seconds of time.monotonic() as a Time; what lies beyond any use becomes kNever.
inline Time time_from_seconds(double seconds) {
  if (!(seconds < 4e9)) return kNever;
  if (seconds < 0) return Time{};
  const std::chrono::duration<double> since_start(seconds);
  return Time(std::chrono::duration_cast<Duration>(since_start));
}

}  // namespace neve
