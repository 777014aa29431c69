// A server that a test plays: it listens on a name that no file system has, says what it is told.
#pragma once

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
  Listener() : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    static int count = 0;
    host_ = std::string(1, '\0') + "neve-" + std::to_string(::getpid()) + "-" + std::to_string(count++);
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
  Descriptor accept() const {  // waits for a client
    return Descriptor(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }

 private:
  Descriptor fd_;
  std::string host_;
};

// False when the client is gone or takes no more.
inline bool say(const Descriptor& to, std::string_view text) {
  return ::send(to.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(text.size());
}

}  // namespace neve::testing
