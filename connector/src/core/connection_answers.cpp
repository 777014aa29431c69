// Settles operations by their replies.

#include <algorithm>
#include <cstring>

#include "connection.h"

namespace neve {
namespace {

using resp::Type;

constexpr std::int64_t kNoAnswer = -1;

}  // namespace

Ref Connection::pop_in_flight() {
  Ref ref = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (ref.batch && ref.operation().kind == Kind::kGet) {
    asked_.give(ref.operation().payload.size());
  }
  return ref;
}

void Connection::answer(resp::Reply&& reply, Time now) {
  if (reply.type == Type::kPush || reply.type == Type::kAttribute) return;
  if (state_ == State::kHello) return on_hello(reply, now);
  if (in_flight_.empty()) return lose(Loss::kBroken, "protocol: a reply that nobody asked for");
  const Ref ref = pop_in_flight();
  if (!ref.batch) return;  // the reply to ASKING
  switch (ref.operation().kind) {
    case Kind::kGet:
      return answer_get(ref, reply, now);
    case Kind::kPut:
      return answer_put(ref, reply);
    case Kind::kCommit:
      return answer_commit(ref, reply, now);
    case Kind::kCall:
      return answer_call(ref, std::move(reply), now);
  }
}

// The value of the front GET was received, or skipped. Verifies it before it settles.
void Connection::settle_value() {
  reading_ = Reading::kLine;
  const Ref ref = pop_in_flight();
  auto& operation = ref.operation();
  primary_->breaker.succeed();
  bool right = fits_;
  if (right) {
    const auto header = decode_header(header_);
    right = header && header->codec == Codec::kPlain && header->id == operation.id &&
            header->payload_bytes == operation.payload.size() &&
            header->payload_checksum == checksum_.digest();
  }
  if (right && operation.header_out != nullptr) {
    std::memcpy(operation.header_out, header_.data(), kHeaderBytes);
  }
  ref.batch->settle(ref.index, right ? Status::kOk : Status::kCorrupt);
}

Status Connection::status_of(const Ref& ref, ErrorKind kind, std::string_view text, Time now) {
  ref.batch->note(text);
  switch (kind) {
    case ErrorKind::kQuota:
      return Status::kQuota;
    case ErrorKind::kCorrupt:
      return Status::kCorrupt;
    case ErrorKind::kMisuse:  // the call is wrong, not the server
      primary_->breaker.succeed();
      return Status::kError;
    case ErrorKind::kRefused:
      primary_->breaker.fail(ref.batch->serial, now);
      return Status::kRefused;
    default:
      primary_->breaker.fail(ref.batch->serial, now);
      return Status::kError;
  }
}

void Connection::answer_get(const Ref& ref, const resp::Reply& reply, Time now) {
  if (reply.type == Type::kError) {
    auto error = read_error(reply.text, endpoint_);
    if (is_redirect(error.kind)) {
      ref.batch->note(reply.text);
      redirects_.push_back({ref, std::move(error)});
      return;
    }
    return ref.batch->settle(ref.index, status_of(ref, error.kind, reply.text, now));
  }
  primary_->breaker.succeed();
  ref.batch->settle(ref.index, reply.type == Type::kNull ? Status::kEvicted : Status::kCorrupt);
}

void Connection::answer_put(const Ref& ref, const resp::Reply& reply) {
  auto& operation = ref.operation();
  operation.answer = Status::kOk;  // "OK", or null: the key exists already
  if (reply.type != Type::kError) return;
  ref.batch->note(reply.text);
  auto error = read_error(reply.text, endpoint_);
  switch (error.kind) {
    case ErrorKind::kQuota:
      operation.answer = Status::kQuota;
      break;
    case ErrorKind::kCorrupt:
      operation.answer = Status::kCorrupt;
      break;
    case ErrorKind::kRefused:
      operation.answer = Status::kRefused;
      break;
    default:
      operation.answer = Status::kError;
      if (is_redirect(error.kind)) ref.batch->groups[operation.group].redirect = std::move(error);
  }
}

void Connection::answer_commit(const Ref& ref, const resp::Reply& reply, Time now) {
  auto& batch = *ref.batch;
  auto& group = batch.groups[ref.operation().group];
  Status said = Status::kError;
  if (reply.type == Type::kError) {
    auto error = read_error(reply.text, endpoint_);
    if (is_redirect(error.kind)) {
      batch.note(reply.text);
      group.redirect = std::move(error);
    } else {
      said = status_of(ref, error.kind, reply.text, now);
    }
  }
  if (is_redirect(group.redirect.kind)) {  // resend the whole group: SET NX may be repeated
    redirects_.push_back({ref, std::exchange(group.redirect, {})});
    return;
  }
  const bool answered = reply.type == Type::kArray && reply.items.size() == group.puts.size();
  if (answered) primary_->breaker.succeed();
  for (std::size_t i = 0; i < group.puts.size(); ++i) {
    const auto put = batch.operations[group.puts[i]].answer;
    Status status = put == Status::kOk ? said : put;  // a failed SET explains a failed commit
    if (answered) {
      const auto& item = reply.items[i];
      switch (item.type == Type::kInteger ? item.integer : kNoAnswer) {
        case kStored:
          status = Status::kOk;
          break;
        case kPresent:
          status = Status::kPresent;
          break;
        case kRefused:
          status = Status::kQuota;
          break;
        case kMismatch:
          status = put == Status::kOk ? Status::kCorrupt : put;
          break;
        case kVanished:
          status = put == Status::kOk ? Status::kEvicted : put;
          break;
        default:
          status = Status::kError;
      }
    }
    batch.settle(group.puts[i], status);
  }
  batch.settle(ref.index, answered ? Status::kOk : said);
}

void Connection::answer_call(const Ref& ref, resp::Reply&& reply, Time now) {
  auto& operation = ref.operation();
  if (reply.type != Type::kError) {
    primary_->breaker.succeed();
    operation.reply = std::move(reply);
    return ref.batch->settle(ref.index, Status::kOk);
  }
  auto error = read_error(reply.text, endpoint_);
  if (is_redirect(error.kind)) {
    ref.batch->note(reply.text);
    redirects_.push_back({ref, std::move(error)});
    return;
  }
  const auto status = status_of(ref, error.kind, reply.text, now);
  operation.reply = std::move(reply);
  ref.batch->settle(ref.index, status);
}

}  // namespace neve
