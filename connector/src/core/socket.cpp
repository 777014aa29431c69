#include "socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <thread>

namespace neve {
namespace {

constexpr Duration kNameLife = std::chrono::seconds(30);

template <typename T>
SocketAddress address_of(const T& specific) {
  SocketAddress address;
  static_assert(sizeof specific <= sizeof address.storage);
  std::memcpy(&address.storage, &specific, sizeof specific);
  address.size = sizeof specific;
  return address;
}

std::optional<SocketAddress> literal_address(const Endpoint& endpoint) {
  if (endpoint.is_unix()) {
    sockaddr_un unix_address{};
    unix_address.sun_family = AF_UNIX;
    if (endpoint.host.size() >= sizeof unix_address.sun_path) return std::nullopt;
    std::memcpy(unix_address.sun_path, endpoint.host.data(), endpoint.host.size());
    return address_of(unix_address);
  }
  sockaddr_in v4{};
  if (::inet_pton(AF_INET, endpoint.host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(endpoint.port);
    return address_of(v4);
  }
  sockaddr_in6 v6{};
  if (::inet_pton(AF_INET6, endpoint.host.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(endpoint.port);
    return address_of(v6);
  }
  return std::nullopt;
}

std::vector<SocketAddress> look_up(const Endpoint& endpoint) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const auto port = std::to_string(endpoint.port);
  if (::getaddrinfo(endpoint.host.c_str(), port.c_str(), &hints, &list) != 0) return {};
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
  std::vector<SocketAddress> found;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    SocketAddress address;
    if (entry->ai_addrlen > sizeof address.storage) continue;
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    address.size = entry->ai_addrlen;
    found.push_back(address);
  }
  return found;
}

void set_option(int fd, int level, int name, int value) {
  ::setsockopt(fd, level, name, &value, sizeof value);  // a failure only costs speed
}

// With bbr, some hosts' default, throughput on loopback or a LAN falls to a tenth. An unprivileged
// process may choose only from net.ipv4.tcp_allowed_congestion_control.
void choose_congestion_control(int fd) {
  for (const std::string_view kind : {"cubic", "reno"}) {
    if (::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, kind.data(),
                     static_cast<socklen_t>(kind.size())) == 0) {
      return;
    }
  }
}

constexpr std::array<std::pair<int, int>, 4> kSilence{
    {{TCP_KEEPIDLE, 15}, {TCP_KEEPINTVL, 2}, {TCP_KEEPCNT, 3}, {TCP_USER_TIMEOUT, 1500}}};

}  // namespace

std::span<const std::pair<int, int>> silence_options() { return kSilence; }

Resolver::Resolver(Endpoint endpoint) : endpoint_(std::move(endpoint)) {
  if (const auto literal = literal_address(endpoint_)) {
    state_->found = {*literal};
    state_->until = kNever;
    state_->known = true;
  } else if (endpoint_.is_unix()) {
    state_->until = kNever;  // the path is too long for a socket: no address
    state_->known = true;
  }
}

std::optional<std::vector<SocketAddress>> Resolver::addresses(Time now) {
  const std::lock_guard lock(state_->mutex);
  if (state_->known && now < state_->until) return state_->found;
  if (!state_->running) {
    state_->running = true;
    std::thread([state = state_, endpoint = endpoint_] {
      auto found = look_up(endpoint);
      const std::lock_guard done(state->mutex);
      state->found = std::move(found);
      state->known = true;
      // Keep a failed look-up only until the waiting connection has polled it.
      state->until =
          Clock::now() + (state->found.empty() ? std::chrono::milliseconds(50) : kNameLife);
      state->running = false;
      state->ended.notify_all();
    }).detach();
  }
  return std::nullopt;
}

std::optional<std::vector<SocketAddress>> Resolver::wait(Time until) {
  while (true) {
    if (auto found = addresses(Clock::now())) return found;
    std::unique_lock lock(state_->mutex);
    if (!state_->ended.wait_until(lock, until, [this] { return !state_->running; })) return {};
  }
}

Descriptor begin_connect(const SocketAddress& address, bool avoid_bbr) {
  const int family = address.storage.ss_family;
  Descriptor fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.is_open()) return fd;
  if (family != AF_UNIX) {
    set_option(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd.get(), SOL_SOCKET, SO_KEEPALIVE, 1);
    for (const auto& [name, value] : kSilence) set_option(fd.get(), IPPROTO_TCP, name, value);
    if (avoid_bbr) choose_congestion_control(fd.get());
  }
  const auto* generic = reinterpret_cast<const sockaddr*>(&address.storage);
  if (::connect(fd.get(), generic, address.size) == 0 || errno == EINPROGRESS) return fd;
  const int trouble = errno;
  fd.reset();
  errno = trouble;
  return fd;
}

int connect_error(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  return error;
}

}  // namespace neve
