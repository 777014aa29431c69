// Non-blocking bytes to and from one socket, plain or TLS. One thread at a time.
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

  // Switches to TLS; call `handshake` until kDone before reading or writing. Throws TlsError.
  void start_tls(const TlsContext& context, const std::string& host);
  IoResult handshake();

  // Fills the vectors in order. `count`: bytes read, more than 0 if kDone.
  IoResult read(std::span<const iovec> into, std::size_t& count);
  IoResult write(std::span<const iovec> from, std::size_t& count);

  int fd() const { return fd_.get(); }
  bool is_open() const { return fd_.is_open(); }
  bool is_tls() const { return tls_.has_value(); }
  // TLS may need to write before it can read: then wait for writability too.
  bool wants_write() const { return wants_write_; }
  // The epoll from which `close` removes the socket.
  void watched_by(int epoll) { epoll_ = epoll; }
  // Shuts the connection down and removes it from epoll: a forked child may hold the socket too,
  // and close() alone would leave both alive.
  void close();
  std::string trouble() const;

 private:
  IoResult result_of(TlsProgress progress);

  Descriptor fd_;  // declared first: closed after the TLS session
  std::optional<TlsSession> tls_;
  bool wants_write_ = false;
  int epoll_ = -1;
  int errno_ = 0;
};

}  // namespace neve
