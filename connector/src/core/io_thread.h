// A thread with its own epoll and its own connections. It never touches Python.
//
// Other threads only `post`. Connections and their queued operations belong to this thread.
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
    kCancel,  // end `parcel.batch`, whose cancelled flag is set
    kRetire,  // close idle connections of retired primaries
    kStop,    // settle all operations as closed
  };

  Kind kind = Kind::kParcel;
  Parcel parcel{};
};

// Decisions that need the whole core. Called from I/O threads.
class Router {
 public:
  virtual ~Router() = default;
  // Resends an operation (a commit with its puts) to `error`'s server, or to its slot's.
  virtual void reroute(const Ref& ref, const ServerError& error, Time now) = 0;
  // The cluster's map may be stale. `clustered`: a server reported cluster mode.
  virtual void suspect_topology(bool clustered, Time now) = 0;
};

struct IoCounters {  // relaxed: gauges and totals that order nothing
  std::atomic<std::uint64_t> connections_opened{0};
  std::atomic<std::uint64_t> connections_lost{0};
  std::atomic<std::uint64_t> retried{0};
};

class IoThread {
 public:
  IoThread(Router& router, IoCounters& counters);
  ~IoThread();
  void post(Message message);
  // To end: `stop` all threads, `join` all, then `drain` all: threads post to each other.
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
  // After each call of a connection: handles redirects and loss, updates epoll.
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
  std::thread thread_;  // last member: starts after all others are constructed
};

}  // namespace neve
