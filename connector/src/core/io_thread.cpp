#include "io_thread.h"

#include <pthread.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <system_error>

namespace neve {
namespace {

constexpr int kEvents = 64;
// Retry after one broken connection, because the server may have restarted; report a second one to
// the caller.
constexpr std::uint8_t kMostLosses = 1;

// Status of an operation whose connection was lost; kPending: send it again.
Status fate(Loss loss, const Ref& ref, Time now) {
  auto& operation = ref.operation();
  if (ref.batch->cancelled()) return Status::kCancelled;
  if (now >= ref.batch->deadline) return Status::kTimeout;
  switch (loss) {
    case Loss::kConnect:
      return Status::kUnavailable;
    case Loss::kRefused:
      return Status::kRefused;
    case Loss::kClosed:
      return Status::kClosed;
    case Loss::kStalled:
      return Status::kTimeout;
    default:
      break;
  }
  if (operation.sent && operation.kind == Kind::kCall && !operation.idempotent) {
    return Status::kUnavailable;
  }
  // Closed because of another batch: no evidence against the server; the deadline bounds retries.
  if (loss == Loss::kCancelled || loss == Loss::kLate) return Status::kPending;
  return operation.losses++ < kMostLosses ? Status::kPending : Status::kUnavailable;
}

}  // namespace

IoThread::IoThread(Router& router, IoCounters& counters)
    : router_(router), counters_(counters), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_.is_open()) throw std::system_error(errno, std::generic_category(), "epoll");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;  // the mailbox
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, mailbox_.fd(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }
  thread_ = std::thread([this] { run(); });
}

IoThread::~IoThread() {
  stop();
  join();
  drain();
}

void IoThread::post(Message message) { mailbox_.post(std::move(message)); }

void IoThread::stop() { post({Message::Kind::kStop}); }

void IoThread::join() {
  if (thread_.joinable()) thread_.join();
}

void IoThread::drain() { take_mail(Clock::now()); }

void IoThread::run() {
  ::pthread_setname_np(::pthread_self(), "neve-io");
  sigset_t all;
  ::sigfillset(&all);  // the host program handles signals; a blocked SIGPIPE becomes EPIPE
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  while (!stopping_) {
    std::array<epoll_event, kEvents> events;
    const int count =
        ::epoll_wait(epoll_.get(), events.data(), kEvents, milliseconds_to_wait(Clock::now()));
    const Time now = Clock::now();
    bool mail = false;
    for (int i = 0; i < count; ++i) {
      auto* slot = static_cast<Slot*>(events[i].data.ptr);
      if (slot == nullptr) {
        mail = true;
      } else if (slot->connection) {
        slot->connection->on_ready(events[i].events, now);
        settle_up(*slot, now);
      }
    }
    if (mail) take_mail(now);
    deliver_due(now);
    for (auto& [key, slot] : slots_) {
      if (slot.connection && now >= slot.connection->due()) {
        slot.connection->on_time(now);
        settle_up(slot, now);
      }
    }
    // Erase emptied slots only now: events of this round pointed to slots.
    std::erase_if(slots_, [](const auto& item) { return !item.second.connection; });
  }
}

int IoThread::milliseconds_to_wait(Time now) const {
  Time next = kNever;
  for (const auto& [key, slot] : slots_) next = std::min(next, slot.connection->due());
  for (const auto& parcel : later_) next = std::min(next, parcel.not_before);
  if (next == kNever) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - now).count();
  return static_cast<int>(std::clamp<decltype(left)>(left, 0, 60'000));
}

void IoThread::take_mail(Time now) {
  for (auto& message : mailbox_.take()) {
    switch (message.kind) {
      case Message::Kind::kParcel:
        deliver(std::move(message.parcel), now);
        break;
      case Message::Kind::kCancel:
        cancel(message.parcel.batch, now);
        break;
      case Message::Kind::kRetire:
        retire(now);
        break;
      case Message::Kind::kStop:
        stopping_ = true;
    }
  }
  if (stopping_) stop_all(now);
}

void IoThread::retire(Time now) {
  for (auto& [key, slot] : slots_) {
    if (slot.connection && key.first->retired.load(std::memory_order_relaxed)) {
      slot.connection->retire_if_idle();
      settle_up(slot, now);
    }
  }
}

void IoThread::deliver(Parcel parcel, Time now) {
  if (parcel.not_before > now && !stopping_) {
    later_.push_back(std::move(parcel));
    return;
  }
  const auto& batch = parcel.batch;
  const bool late = now >= batch->deadline;
  if (late || batch->cancelled() || stopping_) {
    const auto status = late                 ? Status::kTimeout
                        : batch->cancelled() ? Status::kCancelled
                                             : Status::kClosed;
    parcel.primary->breaker.forgive();
    for (const auto index : parcel.operations) {
      if (batch->operations[index].kind != Kind::kPut) batch->settle_whole(index, status);
    }
    return;
  }
  auto& slot = slot_for(parcel, now);
  for (const auto index : parcel.operations) slot.connection->enqueue({batch, index});
  slot.connection->start(now);
  settle_up(slot, now);
}

IoThread::Slot& IoThread::slot_for(const Parcel& parcel, Time now) {
  auto& slot = slots_[{parcel.primary.get(), parcel.lane}];
  if (!slot.connection) {
    slot = Slot{};
    slot.connection = std::make_unique<Connection>(parcel.primary, parcel.lane, now);
    counters_.connections_opened.fetch_add(1, std::memory_order_relaxed);
  }
  return slot;
}

void IoThread::deliver_due(Time now) {
  if (later_.empty()) return;
  std::vector<Parcel> due;
  const auto is_due = [now](const Parcel& parcel) { return parcel.not_before <= now; };
  const auto rest = std::stable_partition(later_.begin(), later_.end(),
                                          [&](const Parcel& parcel) { return !is_due(parcel); });
  std::move(rest, later_.end(), std::back_inserter(due));
  later_.erase(rest, later_.end());
  for (auto& parcel : due) deliver(std::move(parcel), now);
}

void IoThread::cancel(const std::shared_ptr<Batch>& batch, Time now) {
  for (auto& [key, slot] : slots_) {
    if (!slot.connection) continue;
    slot.connection->cancel(*batch);
    settle_up(slot, now);
  }
  for (auto& parcel : later_) {
    if (parcel.batch == batch) parcel.not_before = now;  // delivery sees the cancelled flag
  }
}

void IoThread::stop_all(Time now) {
  for (auto& [key, slot] : slots_) {
    if (!slot.connection) continue;
    slot.connection->lose(Loss::kClosed, "closed");
    settle_up(slot, now);
  }
  for (auto& parcel : std::exchange(later_, {})) deliver(std::move(parcel), now);
}

void IoThread::settle_up(Slot& slot, Time now) {
  for (auto& redirect : slot.connection->take_redirects()) {
    if (redirect.error.kind != ErrorKind::kAsk) router_.suspect_topology(true, now);
    counters_.retried.fetch_add(1, std::memory_order_relaxed);
    router_.reroute(redirect.ref, redirect.error, now);
  }
  if (slot.connection->is_clustered() && !slot.told_clustered) {
    slot.told_clustered = true;
    router_.suspect_topology(true, now);
  }
  const auto& primary = *slot.connection->primary();
  if (primary.retired.load(std::memory_order_relaxed)) slot.connection->retire_if_idle();
  if (slot.connection->loss() != Loss::kNone) {
    end_connection(slot, now);
  } else {
    watch(slot);
  }
}

void IoThread::end_connection(Slot& slot, Time now) {
  const auto connection = std::move(slot.connection);  // its socket is closed
  const auto loss = connection->loss();
  auto& primary = *connection->primary();
  if (loss != Loss::kRetired) counters_.connections_lost.fetch_add(1, std::memory_order_relaxed);
  for (const auto& ref : connection->take_refs()) {
    if (ref.operation().kind == Kind::kPut) continue;  // handled with its commit
    switch (loss) {
      case Loss::kConnect:
      case Loss::kRefused:
      case Loss::kBroken:
      case Loss::kStalled:
        primary.breaker.fail(ref.batch->serial, now);
        break;
      case Loss::kLate:
        if (now >= ref.batch->deadline) blame(primary, *ref.batch, now);
        break;
      case Loss::kCancelled:
        if (ref.batch->cancelled()) primary.breaker.forgive();
        break;
      default:
        break;
    }
    const auto status = fate(loss, ref, now);
    if (status == Status::kPending) {
      counters_.retried.fetch_add(1, std::memory_order_relaxed);
      router_.reroute(ref, {}, now);
      continue;
    }
    if (status != Status::kCancelled) ref.batch->note(connection->trouble());
    ref.batch->settle_whole(ref.index, status);
  }
  if (loss == Loss::kConnect || loss == Loss::kBroken || loss == Loss::kStalled) {
    router_.suspect_topology(false, now);
  }
}

void IoThread::watch(Slot& slot) {
  const int fd = slot.connection->fd();
  if (fd < 0) return;  // still looking up the name
  const auto interest = slot.connection->interest();
  const auto serial = slot.connection->socket_serial();
  if (serial == slot.socket_serial && interest == slot.interest) return;
  epoll_event event{};
  event.events = interest;
  event.data.ptr = &slot;
  // epoll dropped the closed socket, even if the new socket has the same number.
  const int operation = serial == slot.socket_serial ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (::epoll_ctl(epoll_.get(), operation, fd, &event) != 0) {
    slot.connection->lose(Loss::kConnect, "cannot watch the socket");
    return end_connection(slot, Clock::now());
  }
  slot.connection->watched_by(epoll_.get());
  slot.socket_serial = serial;
  slot.interest = interest;
}

}  // namespace neve
