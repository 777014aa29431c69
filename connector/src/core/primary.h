// One Valkey server, shared by all threads: its address and its breaker.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "breaker.h"
#include "clock.h"
#include "slots.h"
#include "socket.h"
#include "tls.h"
#include "window.h"

namespace neve {

struct Options {
  unsigned io_threads = 0;  // 0: half of the cores, but 4 where there are so many, at most 8
  unsigned lanes = 2;       // connections for block bytes per primary; calls have one more
  // Bound of requested, unreceived payload bytes per primary (docs/decisions/004-sockets.md).
  std::size_t window_bytes = std::size_t{4} << 20;
  std::size_t most_bytes = std::size_t{4} << 30;       // of all batches in flight; more is dropped
  Duration connect_timeout = std::chrono::seconds(1);  // per address
  Duration stall = std::chrono::seconds(2);            // give up if no byte moves for so long
  bool avoid_bbr = true;                               // docs/decisions/004-sockets.md
};

// Credentials and TLS of all connections to one address. Immutable.
struct Access {
  Options options;
  std::string username;
  std::optional<std::string> password;
  std::shared_ptr<const TlsContext> tls;  // null: plain
};

// For any thread.
struct Primary {
  Primary(std::vector<Endpoint> endpoints, std::shared_ptr<const Access> access_,
          std::uint32_t ordinal_)
      : access(std::move(access_)), ordinal(ordinal_), window(access->options.window_bytes) {
    for (auto& endpoint : endpoints) resolvers.emplace_back(std::move(endpoint));
  }

  std::deque<Resolver> resolvers;  // alternatives, in order; empty if no seed was an address
  const std::shared_ptr<const Access> access;
  const std::uint32_t ordinal;  // spreads lanes over the I/O threads
  Breaker breaker;
  Window window;
  std::atomic<bool> retired{false};  // idle connections close. Relaxed: a mailbox message follows
};

}  // namespace neve
