// A batch of operations in flight, shared by the caller and the I/O threads.
//
// Threads. Before `publish` the batch belongs to the submitting thread. Then each operation belongs
// to the I/O thread whose queue references it, until that thread settles it or passes it to another
// thread through a mailbox (which orders memory). The caller reads statuses and replies only after
// `done`; from then on, no thread touches the caller's memory.
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
#include "payload.h"
#include "resp.h"
#include "slots.h"
#include "status.h"

namespace neve {

class CompletionQueue;
class Batch;

// Order of sending: loads first, because an engine waits for them.
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
  Status answer = Status::kPending;  // kPut: result of SET, until the commit decides
  bool asking = false;               // preceded by ASKING: the slot is moving to this server
  bool sent = false;                 // at least partly, on its current connection
  bool idempotent = false;           // a call that may be repeated after its connection broke
  std::uint8_t losses = 0;           // connections lost while it was in flight
  std::uint8_t redirects = 0;
  std::uint16_t slot = 0;
  std::uint32_t group = kNoGroup;  // kPut, kCommit
  std::uint32_t tokens = 0;
  BlockId id{};
  BlockId parent{};
  Payload payload;                  // kPut only reads it
  std::byte* header_out = nullptr;  // kGet: the caller's 64 bytes for the verified header, or null
  std::string key;                  // kGet, kPut
  std::string command;              // kCall, kCommit: encoded
  resp::Reply reply;                // kCall
};

// A commit and its puts: same slot, same connection, puts sent first.
struct Group {
  std::uint32_t commit = 0;
  std::vector<std::uint32_t> puts;
  ServerError redirect;  // of any put: redirects the whole group; kOther: none
};

inline bool is_redirect(ErrorKind kind) {
  return kind == ErrorKind::kMoved || kind == ErrorKind::kAsk || kind == ErrorKind::kTryAgain ||
         kind == ErrorKind::kLater;
}

// Bytes of all batches in flight, which the core bounds.
struct Load {
  std::atomic<std::size_t> bytes{0};  // relaxed: a gauge that orders nothing
};

class Batch : public std::enable_shared_from_this<Batch> {
 public:
  Batch(std::size_t visible, Time deadline, Urgency urgency);
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Written by the submitter only, before `publish`.
  std::vector<Operation> operations;  // the caller's first, then commits and touches
  std::vector<Group> groups;
  SpaceTag tag{};
  std::function<void(Batch&)> on_done;  // internal batches: runs in the last settler's thread

  const std::size_t visible;
  const Time deadline;
  const Time started;
  const Urgency urgency;
  const std::uint64_t serial;

  // Called by the submitter after it added all operations, before it posts any.
  void publish(std::shared_ptr<Load> load, std::size_t bytes);

  // Called by the operation's owner. The last `settle` makes the batch done.
  void settle(std::uint32_t index, Status status);

  // Settles a commit with the puts of its group, or any other operation alone.
  void settle_whole(std::uint32_t index, Status status);

  // Keeps the first error text of the batch, for the caller's log.
  void note(std::string_view trouble);

  // For any thread from here on.
  bool done() const;
  bool wait_until(Time until) const;  // false: not done yet
  // Waits likewise, then claims the batch; `ours`: the claim succeeded. A batch with such a waiter
  // enters no queue, so that no other thread wakes in vain.
  bool wait_claim(Time until, bool& ours);
  // True for the first caller only, which then processes the results.
  bool claim() { return !claimed_.exchange(true, std::memory_order_acq_rel); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  void cancel() { cancelled_.store(true, std::memory_order_release); }
  std::string trouble() const;
  // Pushes the batch into the queue once done, at once if it is. Destroyed queues are skipped.
  void notify(const std::shared_ptr<CompletionQueue>& queue);

 private:
  void finish();

  // Operations not settled. Acquire-release: the last settler sees all other settlers' writes.
  std::atomic<std::size_t> open_{1};
  std::atomic<bool> cancelled_{false};  // release/acquire: publishes the canceller's writes
  std::atomic<bool> claimed_{false};    // acquire-release between claimers
  std::shared_ptr<Load> load_;
  std::size_t load_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::condition_variable condition_;
  bool done_ = false;  // mutex_ guards this and the next three
  int claimers_ = 0;
  std::string trouble_;
  std::vector<std::weak_ptr<CompletionQueue>> queues_;
};

// A reference to an operation; without a batch: a reply to discard.
struct Ref {
  std::shared_ptr<Batch> batch;
  std::uint32_t index = 0;

  Operation& operation() const { return batch->operations[index]; }
};

// Done batches, for a thread or an event loop that waits for many. For any thread. Always owned by
// a shared_ptr, because an I/O thread may drop the last reference.
class CompletionQueue : public std::enable_shared_from_this<CompletionQueue> {
 public:
  CompletionQueue();
  ~CompletionQueue();
  int fd() const;
  void push(std::shared_ptr<Batch> batch);  // one eventfd write per burst
  // Claims all queued batches; returns the serials of those not claimed before.
  std::vector<std::uint64_t> take();
  // Waits for at least one. Empty after `until` or `stop`.
  std::vector<std::uint64_t> wait(Time until);
  void stop();
  bool stopped() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace neve
