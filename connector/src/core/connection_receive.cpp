// Receiving: lines and small replies through a small buffer, block values straight to the caller.

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "command.h"
#include "connection.h"

namespace neve {
namespace {

// Bytes received, then checksummed, at a time: few wake-ups, yet still in cache
// (docs/decisions/004-sockets.md).
constexpr std::size_t kPieceBytes = 1 << 20;
// Runs of a payload that one call of the system fills.
constexpr std::size_t kRuns = 64;
// Room behind a value for CRLF and the next reply's first line. Small, because bytes of the next
// value that land here must be copied.
constexpr std::size_t kLookAheadBytes = 128;
// After so many bytes, other connections get their turn; the socket stays readable.
constexpr std::size_t kTurnBytes = 4 << 20;
constexpr std::size_t kTailBytes = 2;  // CRLF

}  // namespace

void Connection::receive(Time now) {
  const auto enough = received_bytes_ + kTurnBytes;
  // Use up bytes that TLS has read ahead: they would not make the socket readable again.
  while (state_ != State::kLost && (received_bytes_ < enough || stream_.is_tls())) {
    if (reading_ == Reading::kValue ? !receive_value(now) : !receive_text(now)) return;
  }
}

// Receives into the header, the payload and, behind the payload, the text buffer.
bool Connection::receive_value(Time now) {
  auto& operation = in_flight_.front().operation();
  const auto payload_at = value_at_ > kHeaderBytes ? value_at_ - kHeaderBytes : 0;
  const auto payload_left = operation.payload.size() - payload_at;
  std::array<iovec, kRuns + 2> vectors;
  std::size_t filled = 0;
  if (value_at_ < kHeaderBytes) {
    vectors[filled++] = {header_.data() + value_at_, kHeaderBytes - value_at_};
  }
  std::size_t runs = 0;
  const auto piece = operation.payload.vectors(payload_at, kPieceBytes,
                                               std::span(vectors).subspan(filled, kRuns), runs);
  filled += runs;
  if (piece == payload_left) vectors[filled++] = {text_.data(), kLookAheadBytes};

  std::size_t count = 0;
  const auto result = stream_.read(std::span(vectors).first(filled), count);
  if (result == IoResult::kWouldBlock) return false;
  if (result != IoResult::kDone) {
    lose(Loss::kBroken, stream_.trouble());
    return false;
  }
  moved_at_ = now;
  received_bytes_ += count;
  const auto header_part = std::min(count, kHeaderBytes - std::min(value_at_, kHeaderBytes));
  const auto payload_part = std::min(count - header_part, piece);
  operation.payload.add_to(checksum_, payload_at, payload_part);
  value_at_ += header_part + payload_part;
  text_start_ = 0;
  text_end_ = count - header_part - payload_part;
  if (value_at_ < kHeaderBytes + operation.payload.size()) return true;
  reading_ = Reading::kTail;
  return parse(now);
}

// Receives into the text buffer; only little while a block value may come, to copy little.
bool Connection::receive_text(Time now) {
  if (text_start_ > 0) {
    std::memmove(text_.data(), text_.data() + text_start_, text_end_ - text_start_);
    text_end_ -= text_start_;
    text_start_ = 0;
  }
  const bool value_next = reading_ == Reading::kLine && !in_flight_.empty() &&
                          in_flight_.front().batch &&
                          in_flight_.front().operation().kind == Kind::kGet;
  const auto room = text_.size() - text_end_;
  const auto want = value_next ? std::min(room, kLookAheadBytes) : room;
  if (want == 0) {
    lose(Loss::kBroken, "protocol: line too long");
    return false;
  }
  const std::array<iovec, 1> vectors{iovec{text_.data() + text_end_, want}};
  std::size_t count = 0;
  const auto result = stream_.read(vectors, count);
  if (result == IoResult::kWouldBlock) return false;
  if (result != IoResult::kDone) {
    lose(Loss::kBroken, stream_.trouble());
    return false;
  }
  moved_at_ = now;
  received_bytes_ += count;
  text_end_ += count;
  return parse(now);
}

// Consumes the text buffer. False once the connection is lost.
bool Connection::parse(Time now) {
  while (state_ != State::kLost && text_start_ < text_end_) {
    const std::string_view input =
        command::as_text(std::span(text_).subspan(text_start_, text_end_ - text_start_));
    if (reading_ == Reading::kSkip) {
      const auto count = std::min(skip_left_, input.size());
      text_start_ += count;
      skip_left_ -= count;
      if (skip_left_ > 0) break;
      reading_ = Reading::kTail;
      continue;
    }
    if (reading_ == Reading::kValue) {
      if (value_at_ < kHeaderBytes) {
        value_at_ += take_text(std::span(header_).subspan(value_at_));
      }
      auto& operation = in_flight_.front().operation();
      const auto& payload = operation.payload;
      if (value_at_ >= kHeaderBytes) {
        const auto at = value_at_ - kHeaderBytes;
        const auto count = std::min(payload.size() - at, text_end_ - text_start_);
        payload.visit(at, count, [&](std::span<std::byte> run) { take_text(run); });
        payload.add_to(checksum_, at, count);
        value_at_ += count;
      }
      if (value_at_ < kHeaderBytes + payload.size()) break;
      reading_ = Reading::kTail;
      continue;
    }
    if (reading_ == Reading::kTail) {
      if (input.size() < kTailBytes) break;
      if (!input.starts_with("\r\n")) {
        lose(Loss::kBroken, "protocol: a value does not end where it should");
        return false;
      }
      text_start_ += kTailBytes;
      settle_value();
      continue;
    }
    if (reading_ == Reading::kLine) {
      resp::Line line;
      const auto progress = resp::read_line(input, line);
      if (progress == resp::Progress::kNeedMore) break;
      if (progress == resp::Progress::kDone && begin_value(line)) continue;
      reading_ = Reading::kReply;
    }
    std::size_t used = 0;
    const auto progress = parser_.feed(input, used);
    text_start_ += used;
    if (progress == resp::Progress::kNeedMore) break;
    if (progress == resp::Progress::kBad) {
      lose(Loss::kBroken, "protocol: unexpected " + std::string(input.substr(0, 32)));
      return false;
    }
    reading_ = Reading::kLine;
    answer(parser_.take(), now);
  }
  return state_ != State::kLost;
}

// Moves bytes from the text buffer to `into`; returns their number.
std::size_t Connection::take_text(std::span<std::byte> into) {
  const auto count = std::min(into.size(), text_end_ - text_start_);
  std::memcpy(into.data(), text_.data() + text_start_, count);
  text_start_ += count;
  return count;
}

// True if `line` begins the value of the front GET: prepares to receive it to the caller, or to
// skip it if its length differs.
bool Connection::begin_value(const resp::Line& line) {
  if (state_ != State::kReady || line.kind != '$' || in_flight_.empty()) return false;
  const auto& front = in_flight_.front();
  if (!front.batch || front.operation().kind != Kind::kGet) return false;
  std::int64_t size = 0;
  if (!resp::read_integer(line.text, size) || size < 0 ||
      static_cast<std::size_t>(size) > resp::kMaxBulkBytes) {
    return false;
  }
  text_start_ += line.bytes;
  value_at_ = 0;
  fits_ = static_cast<std::size_t>(size) == kHeaderBytes + front.operation().payload.size();
  if (fits_) {
    checksum_.reset();
    reading_ = Reading::kValue;
  } else {
    skip_left_ = static_cast<std::size_t>(size);
    reading_ = skip_left_ > 0 ? Reading::kSkip : Reading::kTail;
  }
  return true;
}

}  // namespace neve
