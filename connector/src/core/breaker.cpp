#include "breaker.h"

#include <algorithm>

namespace neve {
namespace {

constexpr Duration kFirstPause = std::chrono::seconds(1);
constexpr Duration kLongestPause = std::chrono::seconds(30);
// After this time, another probe is allowed even if the last one's result was never reported.
constexpr Duration kProbe = std::chrono::seconds(10);

}  // namespace

bool Breaker::allow(Time now) {
  const std::lock_guard lock(mutex_);
  if (state_ == BreakerState::kClosed) return true;
  if (now < until_) return false;
  state_ = BreakerState::kHalfOpen;
  until_ = now + kProbe;
  return true;
}

void Breaker::succeed() {
  if (calm_.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(mutex_);
  state_ = BreakerState::kClosed;
  failures_ = 0;
  last_serial_ = 0;
  pause_ = kFirstPause;
  calm_.store(true, std::memory_order_relaxed);
}

bool Breaker::fail(std::uint64_t serial, Time now) {
  const std::lock_guard lock(mutex_);
  if (serial != 0 && serial == last_serial_) return false;
  last_serial_ = serial;
  calm_.store(false, std::memory_order_relaxed);
  ++failures_;
  if (state_ == BreakerState::kOpen && now < until_) return false;  // sent before it opened
  const bool was_closed = state_ == BreakerState::kClosed;
  if (was_closed && failures_ < kFailuresToOpen) return false;
  state_ = BreakerState::kOpen;
  until_ = now + pause_;
  pause_ = std::min(2 * pause_, kLongestPause);
  return was_closed;
}

void Breaker::forgive() {
  const std::lock_guard lock(mutex_);
  if (state_ == BreakerState::kHalfOpen) until_ = Time{};
}

BreakerState Breaker::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

bool Breaker::is_open(Time now) const {
  const std::lock_guard lock(mutex_);
  return state_ != BreakerState::kClosed && now < until_;
}

}  // namespace neve
