#include "batch.h"

#include <poll.h>

#include <algorithm>
#include <utility>

#include "event.h"

namespace neve {
namespace {

std::uint64_t next_serial() {
  static std::atomic<std::uint64_t> last{0};  // relaxed: only uniqueness matters
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

int milliseconds_until(Time until) {
  if (until == kNever) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::clamp<decltype(left)>(left, 0, 1'000'000));
}

}  // namespace

Batch::Batch(std::size_t visible_, Time deadline_, Urgency urgency_)
    : visible(visible_),
      deadline(deadline_),
      started(Clock::now()),
      urgency(urgency_),
      serial(next_serial()) {}

Batch::~Batch() {
  if (load_) load_->bytes.fetch_sub(load_bytes_, std::memory_order_relaxed);
}

void Batch::publish(std::shared_ptr<Load> load, std::size_t bytes) {
  load->bytes.fetch_add(bytes, std::memory_order_relaxed);
  load_ = std::move(load);
  load_bytes_ = bytes;
  open_.store(operations.size(), std::memory_order_relaxed);  // posting the batch orders it
  if (operations.empty()) finish();
}

void Batch::settle(std::uint32_t index, Status status) {
  operations[index].status = status;
  if (open_.fetch_sub(1, std::memory_order_acq_rel) == 1) finish();
}

void Batch::settle_whole(std::uint32_t index, Status status) {
  const auto& operation = operations[index];
  if (operation.kind == Kind::kCommit) {
    // The batch cannot become done in this loop: the commit is still unsettled.
    for (const auto put : groups[operation.group].puts) settle(put, status);
  }
  settle(index, status);
}

void Batch::finish() {
  const auto self = shared_from_this();
  if (load_) {  // only the last settler runs this
    load_->bytes.fetch_sub(load_bytes_, std::memory_order_relaxed);
    load_.reset();
  }
  if (on_done) on_done(*this);
  std::vector<std::weak_ptr<CompletionQueue>> queues;
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
    queues.swap(queues_);
    if (claimers_ > 0) queues.clear();
  }
  condition_.notify_all();
  for (const auto& weak : queues) {
    if (const auto queue = weak.lock()) queue->push(self);
  }
}

void Batch::note(std::string_view trouble) {
  const std::lock_guard lock(mutex_);
  if (trouble_.empty()) trouble_ = trouble.substr(0, 500);
}

bool Batch::done() const {
  const std::lock_guard lock(mutex_);
  return done_;
}

bool Batch::wait_until(Time until) const {
  std::unique_lock lock(mutex_);
  if (until == kNever) {
    condition_.wait(lock, [this] { return done_; });
    return true;
  }
  return condition_.wait_until(lock, until, [this] { return done_; });
}

bool Batch::wait_claim(Time until, bool& ours) {
  std::unique_lock lock(mutex_);
  ++claimers_;
  if (until == kNever) {
    condition_.wait(lock, [this] { return done_; });
  } else {
    condition_.wait_until(lock, until, [this] { return done_; });
  }
  --claimers_;
  ours = done_ && claim();
  return done_;
}

std::string Batch::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

void Batch::notify(const std::shared_ptr<CompletionQueue>& queue) {
  {
    const std::lock_guard lock(mutex_);
    if (!done_) {
      queues_.push_back(queue);
      return;
    }
  }
  queue->push(shared_from_this());
}

struct CompletionQueue::State {
  Event event;
  std::mutex mutex;
  std::vector<std::shared_ptr<Batch>> batches;
  bool stopped = false;
};

CompletionQueue::CompletionQueue() : state_(std::make_unique<State>()) {}
CompletionQueue::~CompletionQueue() = default;

int CompletionQueue::fd() const { return state_->event.fd(); }

void CompletionQueue::push(std::shared_ptr<Batch> batch) {
  bool first = false;
  {
    const std::lock_guard lock(state_->mutex);
    first = state_->batches.empty();
    state_->batches.push_back(std::move(batch));
  }
  if (first) state_->event.set();
}

std::vector<std::uint64_t> CompletionQueue::take() {
  std::vector<std::shared_ptr<Batch>> batches;
  {
    const std::lock_guard lock(state_->mutex);
    if (!state_->stopped) state_->event.clear();
    batches.swap(state_->batches);
  }
  std::vector<std::uint64_t> serials;
  for (const auto& batch : batches) {
    if (batch->claim()) serials.push_back(batch->serial);
  }
  return serials;
}

std::vector<std::uint64_t> CompletionQueue::wait(Time until) {
  while (true) {
    if (auto serials = take(); !serials.empty() || stopped()) return serials;
    if (Clock::now() >= until) return {};
    pollfd ready{.fd = fd(), .events = POLLIN, .revents = 0};
    ::poll(&ready, 1, milliseconds_until(until));
  }
}

void CompletionQueue::stop() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopped = true;
  }
  state_->event.set();
}

bool CompletionQueue::stopped() const {
  const std::lock_guard lock(state_->mutex);
  return state_->stopped;
}

}  // namespace neve
