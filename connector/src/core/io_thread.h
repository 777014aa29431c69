// A thread with its own epoll and its own connections. It never touches Python.
//
// Other threads only `post`. Connections, and operations in their queues, belong to this thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "connection.h"
#include "mailbox.h"

namespace neve {

// Operations of one batch for one connection.
struct Parcel {
  std::shared_ptr<Primary> primary;
  std::uint32_t lane = 0;
  std::shared_ptr<Batch> batch;
  std::vector<std::uint32_t> operations;
  Time not_before{};
};

struct Message {
  enum class Kind : std::uint8_t {
    kParcel,
    kCancel,  // `parcel.batch`, whose flag is set already, ends now, wherever it is
    kRetire,  // some primaries are retired: their idle connections may go
    kStop,    // everything that is under way is settled as closed
  };

  Kind kind = Kind::kParcel;
  Parcel parcel{};
};

// What a thread cannot decide by itself. Called from I/O threads.
class Router {
 public:
  virtual ~Router() = default;
  // Sends an operation (a commit with its puts) again, where `error` says or where its slot is.
  virtual void reroute(const Ref& ref, const ServerError& error, Time now) = 0;
  // The map of the cluster may be out of date. `clustered`: a server said that there is one.
  virtual void suspect_topology(bool clustered, Time now) = 0;
};

struct IoCounters {  // gauges and totals read alone: relaxed
  std::atomic<std::uint64_t> connections_opened{0};
  std::atomic<std::uint64_t> connections_lost{0};
  std::atomic<std::uint64_t> retried{0};
};

class IoThread {
 public:
  IoThread(Router& router, IoCounters& counters);
  ~IoThread();
  void post(Message message);
  // To end: `stop` all threads, `join` all, then `drain` all: they may have posted to each other.
  void stop();
  void join();
  void drain();

 private:
  struct Slot {
    std::unique_ptr<Connection> connection;
    std::uint32_t socket_serial = 0;
    std::uint32_t interest = 0;
    bool told_clustered = false;
  };
  using Key = std::pair<const Primary*, std::uint32_t>;

  void run();
  int milliseconds_to_wait(Time now) const;
  void take_mail(Time now);
  void deliver(Parcel parcel, Time now);
  Slot& slot_for(const Parcel& parcel, Time now);
  void deliver_due(Time now);
  void cancel(const std::shared_ptr<Batch>& batch, Time now);
  void retire(Time now);
  void stop_all(Time now);
  // After each call of a connection: redirects, loss, what epoll should watch.
  void settle_up(Slot& slot, Time now);
  void end_connection(Slot& slot, Time now);
  void watch(Slot& slot);

  Router& router_;
  IoCounters& counters_;
  Descriptor epoll_;
  Mailbox<Message> mailbox_;
  std::map<Key, Slot> slots_;
  std::vector<Parcel> later_;
  bool stopping_ = false;
  std::thread thread_;  // last: begins when all else is there
};

}  // namespace neve
