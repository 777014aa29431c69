// Bounds the bytes requested and not yet received, per primary and across its connections: Valkey
// keeps a copy of each reply until it is sent.
#pragma once

#include <atomic>
#include <cstddef>

namespace neve {

// For any thread. Relaxed throughout: the bound orders no other memory.
class Window {
 public:
  explicit Window(std::size_t most_bytes) : most_bytes_(most_bytes) {}
  std::size_t asked_bytes() const { return asked_bytes_.load(std::memory_order_relaxed); }

 private:
  friend class WindowShare;
  const std::size_t most_bytes_;
  std::atomic<std::size_t> asked_bytes_{0};
};

// One connection's share. One thread. The first block is always allowed, so a connection that waits
// for room has a block in flight and retries when it ends: no wake-up is needed.
class WindowShare {
 public:
  explicit WindowShare(Window& window) : window_(window) {}
  WindowShare(const WindowShare&) = delete;
  WindowShare& operator=(const WindowShare&) = delete;
  ~WindowShare() { give_all(); }

  // Reserves `bytes` if the window has room. Returns whether it had.
  bool take(std::size_t bytes) {
    auto total = window_.asked_bytes_.load(std::memory_order_relaxed);
    do {
      if (own_bytes_ > 0 && total + bytes > window_.most_bytes_) return false;
    } while (!window_.asked_bytes_.compare_exchange_weak(total, total + bytes,
                                                         std::memory_order_relaxed));
    own_bytes_ += bytes;
    return true;
  }

  void give(std::size_t bytes) {
    own_bytes_ -= bytes;
    window_.asked_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
  }

  void give_all() { give(own_bytes_); }

 private:
  Window& window_;
  std::size_t own_bytes_ = 0;
};

}  // namespace neve
