// How many bytes may be asked for and not yet received: one bound for each primary, shared by its
// connections. Valkey holds a copy of each waiting reply, whichever connection asked for it.
#pragma once

#include <atomic>
#include <cstddef>

namespace neve {

// For any thread. A bound read alone orders nothing: relaxed throughout.
class Window {
 public:
  explicit Window(std::size_t most_bytes) : most_bytes_(most_bytes) {}
  std::size_t asked_bytes() const { return asked_bytes_.load(std::memory_order_relaxed); }

 private:
  friend class WindowShare;
  const std::size_t most_bytes_;
  std::atomic<std::size_t> asked_bytes_{0};
};

// One connection's share. One thread. One block is always allowed: a connection that waits for room
// thus has something in flight, and looks again when that ends. Nobody needs to be woken.
class WindowShare {
 public:
  explicit WindowShare(Window& window) : window_(window) {}
  WindowShare(const WindowShare&) = delete;
  WindowShare& operator=(const WindowShare&) = delete;
  ~WindowShare() { give_all(); }

  // Whether that much more may be asked for now; then it is.
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
