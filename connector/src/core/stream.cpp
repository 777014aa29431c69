#include "stream.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace neve {

void Stream::start_tls(const TlsContext& context, const std::string& host) {
  tls_.emplace(context.connect(fd_.get(), host));
}

IoResult Stream::handshake() { return tls_ ? result_of(tls_->handshake()) : IoResult::kDone; }

IoResult Stream::read(std::span<const iovec> into, std::size_t& count) {
  count = 0;
  if (tls_) {
    for (const auto& part : into) {
      if (part.iov_len > 0) return result_of(tls_->read(part.iov_base, part.iov_len, count));
    }
    return IoResult::kWouldBlock;
  }
  while (true) {
    const auto got = ::readv(fd_.get(), into.data(), static_cast<int>(into.size()));
    if (got > 0) {
      count = static_cast<std::size_t>(got);
      return IoResult::kDone;
    }
    if (got == 0) return IoResult::kClosed;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return IoResult::kWouldBlock;
    errno_ = errno;
    return IoResult::kFailed;
  }
}

IoResult Stream::write(std::span<const iovec> from, std::size_t& count) {
  count = 0;
  if (tls_) {
    for (const auto& part : from) {
      if (part.iov_len > 0) return result_of(tls_->write(part.iov_base, part.iov_len, count));
    }
    return IoResult::kWouldBlock;
  }
  while (true) {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(from.data());  // sendmsg only reads it
    message.msg_iovlen = from.size();
    const auto sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
    if (sent >= 0) {
      count = static_cast<std::size_t>(sent);
      return IoResult::kDone;
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return IoResult::kWouldBlock;
    errno_ = errno;
    return IoResult::kFailed;
  }
}

void Stream::close() {
  tls_.reset();
  if (!fd_.is_open()) return;
  if (epoll_ >= 0) ::epoll_ctl(std::exchange(epoll_, -1), EPOLL_CTL_DEL, fd_.get(), nullptr);
  ::shutdown(fd_.get(), SHUT_RDWR);
  fd_.reset();
}

std::string Stream::trouble() const {
  if (tls_ && !tls_->trouble().empty()) return tls_->trouble();
  if (errno_ != 0) return std::generic_category().message(errno_);
  return "connection closed by the server";
}

IoResult Stream::result_of(TlsProgress progress) {
  wants_write_ = progress == TlsProgress::kWantWrite;
  switch (progress) {
    case TlsProgress::kDone:
      return IoResult::kDone;
    case TlsProgress::kWantRead:
    case TlsProgress::kWantWrite:
      return IoResult::kWouldBlock;
    case TlsProgress::kClosed:
      return IoResult::kClosed;
    case TlsProgress::kFailed:
      break;
  }
  return IoResult::kFailed;
}

}  // namespace neve
