// Non-blocking sockets: resolving addresses, connecting, and measured socket options.
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

// TCP options (IPPROTO_TCP) that detect dead connections. A firewall or NAT that forgot a
// connection silently drops its packets, so a request would wait for its whole deadline. Keepalive
// probes idle connections before NATs forget them (most keep 60 s); bytes that the peer's kernel
// does not acknowledge within 1.5 s end the connection.
std::span<const std::pair<int, int>> silence_options();

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

// Addresses of one endpoint. IP addresses and paths are known at once; names are looked up in a
// separate thread, because the system's resolver blocks without a bound. For any thread.
class Resolver {
 public:
  explicit Resolver(Endpoint endpoint);

  // nullopt while the look-up runs; then its addresses, perhaps none. Results of names are cached
  // for 30 s.
  std::optional<std::vector<SocketAddress>> addresses(Time now);
  // Waits for the look-up; nullopt if it still runs at `until`.
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

// Returns a connecting or connected socket; an empty descriptor if that failed at once (see errno).
Descriptor begin_connect(const SocketAddress& address, bool avoid_bbr);

// Result of a connect whose `fd` is writable: 0, or the errno of the failure.
int connect_error(int fd);

}  // namespace neve
