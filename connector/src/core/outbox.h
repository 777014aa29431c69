// Bytes waiting to be sent on one connection: small texts it owns, and payloads it borrows. One
// thread. Borrowed memory must stay unchanged until it is sent or the outbox is destroyed.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <deque>
#include <span>
#include <string>
#include <string_view>

namespace neve {

class Outbox {
 public:
  bool empty() const { return bytes_ == 0; }
  std::size_t bytes() const { return bytes_; }

  // Append small texts here; call `borrow` or `seal` before `vectors`.
  std::string& text() { return text_; }

  void borrow(std::span<const std::byte> payload) {
    seal();
    pieces_.push_back({payload.data(), {}, payload.size()});
    bytes_ += payload.size();
  }

  void seal() {
    if (text_.empty()) return;
    bytes_ += text_.size();
    const auto size = text_.size();
    pieces_.push_back({nullptr, std::move(text_), size});
    text_.clear();
  }

  // Fills `out` from the front; returns the number of filled entries.
  std::size_t vectors(std::span<iovec> out) {
    std::size_t count = 0;
    std::size_t skip = sent_;
    for (auto& piece : pieces_) {
      if (count == out.size()) break;
      const auto* start = piece.borrowed != nullptr
                              ? piece.borrowed
                              : reinterpret_cast<const std::byte*>(piece.text.data());
      out[count++] = {const_cast<std::byte*>(start) + skip, piece.size - skip};
      skip = 0;
    }
    return count;
  }

  void consume(std::size_t count) {
    bytes_ -= count;
    sent_ += count;
    while (!pieces_.empty() && sent_ >= pieces_.front().size) {
      sent_ -= pieces_.front().size;
      pieces_.pop_front();
    }
  }

  void clear() { *this = Outbox(); }

 private:
  struct Piece {
    const std::byte* borrowed;
    std::string text;
    std::size_t size;
  };

  std::deque<Piece> pieces_;
  std::string text_;
  std::size_t bytes_ = 0;
  std::size_t sent_ = 0;  // bytes of the first piece already sent
};

}  // namespace neve
