// A server scripted by a test, on an abstract Unix socket.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "descriptor.h"
#include "slots.h"

namespace neve::testing {

inline constexpr std::string_view kHello = "%1\r\n+mode\r\n+standalone\r\n";

class Listener {
 public:
  Listener() : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    static int count = 0;
    host_ =
        std::string(1, '\0') + "neve-" + std::to_string(::getpid()) + "-" + std::to_string(count++);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, host_.data(), host_.size());
    if (::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(fd_.get(), 8) != 0) {
      throw std::runtime_error("cannot listen");
    }
  }

  Endpoint endpoint() const { return {host_, 0}; }
  std::string seed() const { return "unix:" + host_; }
  Descriptor accept() const {  // waits for a client; none after 5 s
    pollfd ready{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    ::poll(&ready, 1, 5000);
    return Descriptor(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  }

 private:
  Descriptor fd_;
  std::string host_;
};

// Receives from the client until `text` came `times` times, or no byte came for 5 s.
inline std::string hear(const Descriptor& from, std::string_view text, int times = 1) {
  std::string heard;
  const auto count = [&] {
    int found = 0;
    for (auto at = heard.find(text); at != std::string::npos; at = heard.find(text, at + 1))
      ++found;
    return found;
  };
  while (count() < times) {
    pollfd ready{.fd = from.get(), .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 5000) <= 0) break;
    char buffer[4096];
    const auto got = ::recv(from.get(), buffer, sizeof buffer, 0);
    if (got <= 0) break;
    heard.append(buffer, static_cast<std::size_t>(got));
  }
  return heard;
}

// Whether the client closes the connection within 5 s; discards bytes before.
inline bool hangs_up(const Descriptor& server) {
  while (true) {
    pollfd ready{.fd = server.get(), .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 5000) <= 0) return false;
    char buffer[4096];
    if (::recv(server.get(), buffer, sizeof buffer, 0) <= 0) return true;
  }
}

// Sends `text`. False if the client is gone or accepts no more bytes.
inline bool say(const Descriptor& to, std::string_view text) {
  return ::send(to.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(text.size());
}

}  // namespace neve::testing
