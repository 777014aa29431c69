// Non-blocking sockets: where to connect, how to begin, and the options that were measured.
#pragma once

#include <sys/socket.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "clock.h"
#include "descriptor.h"
#include "slots.h"

namespace neve {

// Options of TCP (IPPROTO_TCP) and their values that bound silence. A firewall or NAT that forgot a
// connection drops its packets without an answer; a request would wait for its whole deadline. An
// idle connection is probed before NATs forget it (most keep 60 s). Bytes that the other kernel,
// not its program, leaves unacknowledged for 1.5 s end the connection.
std::span<const std::pair<int, int>> silence_options();

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

// Addresses of one endpoint. Numbers and paths are known at once; a name is looked up by a thread
// of its own, since that blocks for as long as the resolver likes. For any thread.
class Resolver {
 public:
  explicit Resolver(Endpoint endpoint);

  // Nothing while the look-up runs; then what it found, perhaps no address at all. Results of names
  // are used for 30 s.
  std::optional<std::vector<SocketAddress>> addresses(Time now);
  // The same, once the look-up has ended; nothing if it still runs at `until`.
  std::optional<std::vector<SocketAddress>> wait(Time until);
  const Endpoint& endpoint() const { return endpoint_; }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable ended;
    bool running = false;
    bool known = false;
    Time until{};
    std::vector<SocketAddress> found;
  };

  const Endpoint endpoint_;
  // Shared with the look-up's thread, which may outlive this.
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// A socket that is connecting or connected; not open when that failed at once (see errno).
Descriptor begin_connect(const SocketAddress& address, bool avoid_bbr);

// 0 once `fd`, reported writable, is connected; else the errno of the failure.
int connect_error(int fd);

}  // namespace neve
