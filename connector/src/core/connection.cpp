#include "connection.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "command.h"

namespace neve {
namespace {

constexpr std::size_t kTextBytes = 16 << 10;
// Bound of unanswered commands: their small replies fit in the socket's buffers.
constexpr std::size_t kMaxInFlight = 512;
// Puts are checksummed shortly before sending, so that the bytes are still in cache.
constexpr std::size_t kEncodeAheadBytes = 512 << 10;
constexpr std::size_t kVectors = 64;
constexpr Duration kResolvePoll = std::chrono::milliseconds(5);
constexpr std::string_view kAsking = "*1\r\n$6\r\nASKING\r\n";

static_assert(kTextBytes > resp::kMaxLineBytes);

// A timeout shorter than this is no evidence against the server.
constexpr Duration kFair = std::chrono::milliseconds(100);

}  // namespace

void blame(Primary& primary, const Batch& batch, Time now) {
  if (now - batch.started >= kFair) {
    primary.breaker.fail(batch.serial, now);
  } else {
    primary.breaker.forgive();
  }
}

Connection::Connection(std::shared_ptr<Primary> primary, std::uint32_t lane, Time now)
    : primary_(std::move(primary)),
      lane_(lane),
      options_(primary_->access->options),
      connect_until_(now + options_.connect_timeout),
      moved_at_(now),
      asked_(primary_->window),
      text_(kTextBytes) {}

void Connection::enqueue(Ref ref) {
  earliest_deadline_ = std::min(earliest_deadline_, ref.batch->deadline);
  waiting_[static_cast<std::size_t>(ref.batch->urgency)].push_back(std::move(ref));
}

void Connection::start(Time now) {
  if (state_ == State::kResolving) {
    connect_next(now);
  } else if (state_ == State::kReady) {
    if (in_flight_.empty()) moved_at_ = now;  // measure a stall from the first operation on
    flush(now);
  }
}

void Connection::connect_next(Time now) {
  forget_session();
  while (state_ != State::kLost) {
    if (candidates_.empty()) {
      if (next_resolver_ == primary_->resolvers.size()) {
        return lose(Loss::kConnect, trouble_.empty() ? "no address is known" : trouble_);
      }
      auto& resolver = primary_->resolvers[next_resolver_];
      auto found = resolver.addresses(now);
      if (!found && now < connect_until_) {
        state_ = State::kResolving;
        look_again_at_ = now + kResolvePoll;
        return;
      }
      ++next_resolver_;
      endpoint_ = resolver.endpoint();
      const bool in_time = found.has_value();
      candidates_ = std::move(found).value_or(std::vector<SocketAddress>());
      if (candidates_.empty()) {
        trouble_ = endpoint_.name() + (in_time ? ": no such host" : ": not looked up in time");
      }
      connect_until_ = now + options_.connect_timeout;
      continue;
    }
    const auto address = candidates_.front();
    candidates_.erase(candidates_.begin());
    stream_ = Stream(begin_connect(address, options_.avoid_bbr));
    ++socket_serial_;
    connect_until_ = now + options_.connect_timeout;
    if (stream_.is_open()) {
      state_ = State::kConnecting;
      return;
    }
    trouble_ = endpoint_.name() + ": " + std::generic_category().message(errno);
  }
}

// Clears the state of an address that was given up.
void Connection::forget_session() {
  stream_.close();
  outbox_.clear();
  parser_ = {};
  reading_ = Reading::kLine;
  text_start_ = text_end_ = 0;
}

void Connection::on_ready(std::uint32_t events, Time now) {
  switch (state_) {
    case State::kResolving:
    case State::kLost:
      return;
    case State::kConnecting:
      if (const int error = connect_error(stream_.fd()); error != 0) {
        trouble_ = endpoint_.name() + ": " + std::generic_category().message(error);
        return connect_next(now);
      }
      if ((events & (EPOLLOUT | EPOLLIN)) == 0) return;
      return begin_session(now);
    case State::kTls:
      return begin_session(now);
    case State::kHello:
    case State::kReady:
      if (events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP) || stream_.is_tls()) receive(now);
      flush(now);
  }
}

void Connection::begin_session(Time now) {
  moved_at_ = now;
  if (const auto& tls = primary_->access->tls; tls && !endpoint_.is_unix()) {
    if (state_ != State::kTls) {
      try {
        stream_.start_tls(*tls, endpoint_.host);
      } catch (const TlsError& error) {
        return lose(Loss::kConnect, error.what());
      }
      state_ = State::kTls;
    }
    switch (stream_.handshake()) {
      case IoResult::kWouldBlock:
        return;
      case IoResult::kDone:
        break;
      default:
        trouble_ = endpoint_.name() + ": " + stream_.trouble();
        return connect_next(now);
    }
  }
  say_hello(now);
}

void Connection::say_hello(Time now) {
  const auto& access = *primary_->access;
  auto& out = outbox_.text();
  command::begin(out, access.password ? 5 : 2);
  command::argument(out, std::string_view("HELLO"));
  command::argument(out, std::string_view("3"));
  if (access.password) {
    command::argument(out, std::string_view("AUTH"));
    command::argument(out, std::string_view(access.username.empty() ? "default" : access.username));
    command::argument(out, std::string_view(*access.password));
  }
  state_ = State::kHello;
  flush(now);
}

void Connection::on_hello(const resp::Reply& reply, Time now) {
  if (reply.type == resp::Type::kError) {
    const auto kind = read_error(reply.text, endpoint_).kind;
    return lose(kind == ErrorKind::kRefused ? Loss::kRefused : Loss::kConnect, reply.text);
  }
  for (std::size_t i = 0; i + 1 < reply.items.size(); i += 2) {
    if (reply.items[i].text == "mode") clustered_ = reply.items[i + 1].text == "cluster";
  }
  state_ = State::kReady;
  moved_at_ = now;
}

Ref* Connection::next_waiting() {
  for (auto& queue : waiting_) {
    if (!queue.empty()) return &queue.front();
  }
  return nullptr;
}

bool Connection::in_flight_of(const Batch& batch) const {
  return std::any_of(in_flight_.begin(), in_flight_.end(),
                     [&](const Ref& ref) { return ref.batch.get() == &batch; });
}

// Removes the front of a queue if it is late or cancelled. If operations of its batch are in
// flight, their memory is in use, so the connection is lost first.
bool Connection::drop_if_over(const Ref& ref, Time now) {
  const bool late = now >= ref.batch->deadline;
  if (!late && !ref.batch->cancelled()) return false;
  if (in_flight_of(*ref.batch)) {
    lose(late ? Loss::kLate : Loss::kCancelled, late ? "no answer in time" : "cancelled");
    return true;
  }
  const Ref over = ref;  // NOLINT(performance-unnecessary-copy-initialization): `ref` is popped
  waiting_[static_cast<std::size_t>(over.batch->urgency)].pop_front();
  give_up(over, late ? Status::kTimeout : Status::kCancelled, now);
  return true;
}

// Settles an operation that was never sent; counts against the server only if that is silent.
void Connection::give_up(const Ref& ref, Status status, Time now) {
  if (ref.operation().kind == Kind::kPut) return;  // the commit behind it settles it
  if (status == Status::kTimeout && (state_ != State::kReady || now - moved_at_ >= kFair)) {
    blame(*primary_, *ref.batch, now);
  }
  if (status == Status::kCancelled) primary_->breaker.forgive();
  ref.batch->settle_whole(ref.index, status);
}

void Connection::pump(Time now) {
  while (state_ == State::kReady && outbox_.bytes() < kEncodeAheadBytes &&
         in_flight_.size() < kMaxInFlight) {
    Ref* front = next_waiting();
    if (front == nullptr) break;
    if (drop_if_over(*front, now)) continue;
    const auto& operation = front->operation();
    if (operation.kind == Kind::kGet && !asked_.take(operation.payload.size())) break;
    const Ref ref = std::move(*front);
    waiting_[static_cast<std::size_t>(ref.batch->urgency)].pop_front();
    encode(ref);
  }
  outbox_.seal();
}

void Connection::encode(const Ref& ref) {
  auto& operation = ref.operation();
  operation.sent = true;
  if (operation.asking) {
    outbox_.text() += kAsking;
    in_flight_.push_back({});
  }
  switch (operation.kind) {
    case Kind::kGet:
      command::begin(outbox_.text(), 2);
      command::argument(outbox_.text(), std::string_view("GET"));
      command::argument(outbox_.text(), std::string_view(operation.key));
      break;
    case Kind::kPut:
      encode_put(operation, *ref.batch);
      break;
    case Kind::kCommit:
    case Kind::kCall:
      outbox_.text() += operation.command;
  }
  in_flight_.push_back(ref);
  if (outbox_.text().size() >= kEncodeAheadBytes) outbox_.seal();
}

void Connection::encode_put(Operation& operation, const Batch& batch) {
  const auto& payload = operation.payload;
  std::array<std::byte, kHeaderBytes> header;
  encode_header({.id = operation.id,
                 .parent = operation.parent,
                 .tokens = operation.tokens,
                 .payload_bytes = static_cast<std::uint32_t>(payload.size()),
                 .payload_checksum = payload.checksum(),
                 .tag = batch.tag},
                header);
  auto& out = outbox_.text();
  command::begin(out, 6);
  command::argument(out, std::string_view("SET"));
  command::argument(out, std::string_view(operation.key));
  command::length(out, kHeaderBytes + payload.size());
  out += command::as_text(header);
  payload.visit(0, payload.size(), [&](std::span<const std::byte> run) { outbox_.borrow(run); });
  auto& end = outbox_.text();
  end += "\r\n";
  for (const std::string_view word :
       {std::string_view("NX"), std::string_view("PX"), kUncommittedMs}) {
    command::argument(end, word);
  }
}

void Connection::flush(Time now) {
  if (state_ == State::kReady) pump(now);
  outbox_.seal();
  while (state_ != State::kLost && !outbox_.empty()) {
    std::array<iovec, kVectors> vectors;
    const auto filled = outbox_.vectors(vectors);
    std::size_t sent = 0;
    const auto result = stream_.write(std::span(vectors).first(filled), sent);
    if (result == IoResult::kWouldBlock) return;
    if (result != IoResult::kDone) {
      // Read on: the server may have sent a reason before it closed; `receive` also finds the end.
      receive(now);
      return lose(Loss::kBroken, stream_.trouble());
    }
    outbox_.consume(sent);
    moved_at_ = now;
    if (state_ == State::kReady) pump(now);
  }
}

void Connection::on_time(Time now) {
  switch (state_) {
    case State::kLost:
      return;
    case State::kResolving:
      connect_next(now);
      break;
    case State::kConnecting:
    case State::kTls:
    case State::kHello:
      if (now >= connect_until_) {
        trouble_ = endpoint_.name() + ": no answer in time";
        connect_next(now);
      }
      break;
    case State::kReady:
      if (!in_flight_.empty() && now >= moved_at_ + options_.stall) {
        lose(Loss::kStalled, "nothing moved");
      }
  }
  if (now < earliest_deadline_ || state_ == State::kLost) return;
  const auto is_late = [now](const Ref& ref) { return ref.batch && now >= ref.batch->deadline; };
  if (std::any_of(in_flight_.begin(), in_flight_.end(), is_late)) {
    return lose(Loss::kLate, "no answer in time");
  }
  earliest_deadline_ = kNever;
  for (auto& queue : waiting_) {
    std::deque<Ref> kept;
    for (auto& ref : queue) {
      if (!is_late(ref)) {
        earliest_deadline_ = std::min(earliest_deadline_, ref.batch->deadline);
        kept.push_back(std::move(ref));
      } else {
        give_up(ref, Status::kTimeout, now);
      }
    }
    queue.swap(kept);
  }
  for (const auto& ref : in_flight_) {
    if (ref.batch) earliest_deadline_ = std::min(earliest_deadline_, ref.batch->deadline);
  }
}

Time Connection::due() const {
  switch (state_) {
    case State::kLost:
      return kNever;
    case State::kResolving:
      return std::min(earliest_deadline_, look_again_at_);
    case State::kConnecting:
    case State::kTls:
    case State::kHello:
      return std::min(earliest_deadline_, connect_until_);
    case State::kReady:
      break;
  }
  return in_flight_.empty() ? earliest_deadline_
                            : std::min(earliest_deadline_, moved_at_ + options_.stall);
}

void Connection::cancel(const Batch& batch) {
  if (state_ == State::kLost) return;
  if (in_flight_of(batch)) return lose(Loss::kCancelled, "cancelled");
  for (auto& queue : waiting_) {
    std::deque<Ref> kept;
    for (auto& ref : queue) {
      if (ref.batch.get() != &batch) {
        kept.push_back(std::move(ref));
      } else {
        give_up(ref, Status::kCancelled, moved_at_);
      }
    }
    queue.swap(kept);
  }
}

void Connection::retire_if_idle() {
  if (in_flight_.empty() && next_waiting() == nullptr) lose(Loss::kRetired, "retired");
}

void Connection::lose(Loss loss, std::string_view trouble) {
  if (state_ == State::kLost) return;
  trouble_ = std::string(trouble);
  stream_.close();  // from here on, callers' memory is neither read nor written
  outbox_.clear();
  asked_.give_all();
  state_ = State::kLost;
  loss_ = loss;
}

std::vector<Ref> Connection::take_refs() {
  std::vector<Ref> refs;
  for (auto& ref : in_flight_) {
    if (ref.batch) refs.push_back(std::move(ref));
  }
  in_flight_.clear();
  for (auto& queue : waiting_) {
    std::move(queue.begin(), queue.end(), std::back_inserter(refs));
    queue.clear();
  }
  return refs;
}

std::vector<Redirect> Connection::take_redirects() { return std::exchange(redirects_, {}); }

std::uint32_t Connection::interest() const {
  switch (state_) {
    case State::kConnecting:
      return EPOLLOUT;
    case State::kTls:
      return stream_.wants_write() ? EPOLLIN | EPOLLOUT : EPOLLIN;
    default:
      break;
  }
  const bool wants_out = stream_.is_tls() ? stream_.wants_write() : !outbox_.empty();
  return wants_out ? EPOLLIN | EPOLLOUT : EPOLLIN;
}

}  // namespace neve
