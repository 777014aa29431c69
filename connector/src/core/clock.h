// Deadlines are points on the monotonic clock of Python's time.monotonic().
#pragma once

#include <chrono>

namespace neve {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using Duration = Clock::duration;

inline constexpr Time kNever = Time::max();

// Converts seconds of time.monotonic(); times too far ahead become kNever.
inline Time time_from_seconds(double seconds) {
  if (!(seconds < 4e9)) return kNever;
  if (seconds < 0) return Time{};
  const std::chrono::duration<double> since_start(seconds);
  return Time(std::chrono::duration_cast<Duration>(since_start));
}

}  // namespace neve
