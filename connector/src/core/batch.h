// A batch of operations under way, shared by the caller and the I/O threads.
//
// Threads. Before `publish` the batch belongs to the submitting thread. After it each operation
// belongs to the I/O thread that holds a reference to it in a queue, until that thread settles it
// or hands it to another one through a mailbox (the mailbox orders memory). The caller reads
// statuses and replies only after `done`. Once done, nobody touches the caller's memory again.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "block.h"
#include "clock.h"
#include "resp.h"
#include "slots.h"
#include "status.h"

namespace neve {

class CompletionQueue;
class Batch;

// What an engine waits for goes first.
enum class Urgency : std::uint8_t { kLoad = 0, kStore = 1, kPromote = 2 };
inline constexpr std::size_t kUrgencies = 3;

enum class Kind : std::uint8_t {
  kGet,     // value into header and payload
  kPut,     // SET NX PX; settled by the commit of its group
  kCommit,  // FCALL neve_commit for the puts of its group
  kCall,    // any command
};

inline constexpr std::uint32_t kNoGroup = UINT32_MAX;

struct Operation {
  Kind kind = Kind::kCall;
  Status status = Status::kPending;
  Status answer = Status::kPending;  // kPut: what SET said, until the commit decides
  bool asking = false;               // preceded by ASKING: the slot is moving to this server
  bool sent = false;                 // at least partly, on its present connection
  bool idempotent = false;           // a call that may be sent again when its connection breaks
  std::uint8_t losses = 0;           // connections that broke under it
  std::uint8_t redirects = 0;
  std::uint16_t slot = 0;
  std::uint32_t group = kNoGroup;  // kPut, kCommit
  std::uint32_t tokens = 0;
  BlockId id{};
  BlockId parent{};
  std::byte* payload = nullptr;  // the caller's; kPut only reads it
  std::size_t payload_bytes = 0;
  std::byte* header_out = nullptr;  // kGet: 64 bytes of the caller for the verified header, or none
  std::string key;                  // kGet, kPut
  std::string command;              // kCall, kCommit: encoded
  resp::Reply reply;                // kCall
};

// Puts that one commit makes visible: same slot, same connection, sent before it.
struct Group {
  std::uint32_t commit = 0;
  std::vector<std::uint32_t> puts;
  ServerError redirect;  // of a put, which then concerns them all; kOther: none
};

inline bool is_redirect(ErrorKind kind) {
  return kind == ErrorKind::kMoved || kind == ErrorKind::kAsk || kind == ErrorKind::kTryAgain ||
         kind == ErrorKind::kLater;
}

// Bytes of all batches under way, for the bound of the core.
struct Load {
  std::atomic<std::size_t> bytes{0};  // a gauge read alone: relaxed
};

class Batch : public std::enable_shared_from_this<Batch> {
 public:
  Batch(std::size_t visible, Time deadline, Urgency urgency);
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Plain data while the batch belongs to the submitter.
  std::vector<Operation> operations;  // the caller's first, then commits and touches
  std::vector<Group> groups;
  SpaceTag tag{};
  std::function<void(Batch&)> on_done;  // internal batches: runs in the thread that ends it

  const std::size_t visible;
  const Time deadline;
  const Time started;
  const Urgency urgency;
  const std::uint64_t serial;

  // The submitter, once all operations are in place and before any is handed out.
  void publish(std::shared_ptr<Load> load, std::size_t bytes);

  // The operation's owner. The last one makes the batch done.
  void settle(std::uint32_t index, Status status);

  // The same for a commit and the puts of its group, or for any other operation.
  void settle_whole(std::uint32_t index, Status status);

  // Keeps the first trouble that anybody met, for the caller's log.
  void note(std::string_view trouble);

  // Any thread from here on.
  bool done() const;
  bool wait_until(Time until) const;  // false: still under way
  // Waits likewise, then claims the batch; `ours` says whether that succeeded. Queues hear nothing
  // of a batch with such a waiter, so that no other thread wakes for nothing.
  bool wait_claim(Time until, bool& ours);
  // Whether the caller of `claim` is the first one: who finishes up is decided here.
  bool claim() { return !claimed_.exchange(true, std::memory_order_acq_rel); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  void cancel() { cancelled_.store(true, std::memory_order_release); }
  std::string trouble() const;
  // Puts the batch into the queue once done, or now. A queue that died meanwhile is left out.
  void notify(const std::shared_ptr<CompletionQueue>& queue);

 private:
  void finish();

  // Operations not settled. Acquire-release: who takes the last one sees what the others wrote.
  std::atomic<std::size_t> open_{1};
  std::atomic<bool> cancelled_{false};  // release/acquire: what the canceller did before
  std::atomic<bool> claimed_{false};    // acquire-release, among those that finish up
  std::shared_ptr<Load> load_;
  std::size_t load_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::condition_variable condition_;
  bool done_ = false;  // these four under mutex_
  int claimers_ = 0;
  std::string trouble_;
  std::vector<std::weak_ptr<CompletionQueue>> queues_;
};

// One operation in a queue; an empty one stands for a reply that nobody wants.
struct Ref {
  std::shared_ptr<Batch> batch;
  std::uint32_t index = 0;

  Operation& operation() const { return batch->operations[index]; }
};

// Batches that are done, for a thread or an event loop that waits for many. For any thread. Held by
// shared pointers of its own, so that the last one may be dropped by an I/O thread.
class CompletionQueue : public std::enable_shared_from_this<CompletionQueue> {
 public:
  CompletionQueue();
  ~CompletionQueue();
  int fd() const;
  void push(std::shared_ptr<Batch> batch);  // one eventfd write for a burst
  // Serials of batches that came and that nobody else has claimed; they are claimed now.
  std::vector<std::uint64_t> take();
  // Waits for the first one. Empty after `until` or `stop`.
  std::vector<std::uint64_t> wait(Time until);
  void stop();
  bool stopped() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace neve
