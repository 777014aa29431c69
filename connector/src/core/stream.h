// Bytes to and from one socket, plain or TLS, without ever blocking. One thread at a time.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "descriptor.h"
#include "tls.h"

namespace neve {

enum class IoResult : std::uint8_t { kDone, kWouldBlock, kClosed, kFailed };

class Stream {
 public:
  Stream() = default;
  explicit Stream(Descriptor fd) : fd_(std::move(fd)) {}

  // Goes on with TLS; `handshake` must then say kDone before bytes pass. Throws TlsError.
  void start_tls(const TlsContext& context, const std::string& host);
  IoResult handshake();

  // Fills the vectors in order, as far as there are bytes; `count` of them, more than 0 if kDone.
  IoResult read(std::span<const iovec> into, std::size_t& count);
  IoResult write(std::span<const iovec> from, std::size_t& count);

  int fd() const { return fd_.get(); }
  bool is_open() const { return fd_.is_open(); }
  bool is_tls() const { return tls_.has_value(); }
  // TLS may have to write in order to read: then readability is not enough to go on.
  bool wants_write() const { return wants_write_; }
  // Which epoll `close` has to take the socket out of.
  void watched_by(int epoll) { epoll_ = epoll; }
  // Ends the connection and the watch even where a forked child still holds the socket: closing
  // alone would leave both to the child.
  void close();
  std::string trouble() const;

 private:
  IoResult result_of(TlsProgress progress);

  Descriptor fd_;  // closed after the session that uses it
  std::optional<TlsSession> tls_;
  bool wants_write_ = false;
  int epoll_ = -1;
  int errno_ = 0;
};

}  // namespace neve
