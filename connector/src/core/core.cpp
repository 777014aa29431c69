#include "core.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "command.h"

namespace neve {
namespace {

constexpr unsigned kMostIoThreads = 8;
constexpr Duration kAskTimeout = std::chrono::seconds(1);
constexpr Duration kAskPause = std::chrono::milliseconds(100);  // between two CLUSTER SLOTS
constexpr Duration kFirstDelay = std::chrono::milliseconds(10);
constexpr int kMostDoublings = 4;
// Most redirects of one operation; one more would not help.
constexpr int kMostRedirects = 16;
constexpr int kMostLater = 8;  // 0.8 s without a server for the slot

Options completed(Options options) {
  if (options.io_threads == 0) {
    const auto cores = std::max(std::thread::hardware_concurrency(), 1U);
    options.io_threads = std::clamp(cores / 2, std::min(cores, 4U), kMostIoThreads);
  }
  options.lanes = std::max(options.lanes, 1U);
  // Read in the caller's thread: getenv is unsafe while another thread changes the environment.
  if (std::getenv("NEVE_KEEP_CONGESTION_CONTROL") != nullptr) options.avoid_bbr = false;
  return options;
}

}  // namespace

Core::Core(const Options& options, const Address& address) : options_(completed(options)) {
  readdress(address);
  for (unsigned i = 0; i < options_.io_threads + 1; ++i) {
    threads_.push_back(std::make_unique<IoThread>(*this, io_counters_));
  }
}

Core::~Core() {
  close();
  // A forked child has the threads' memory without the threads, so it can neither end nor free it.
  if (is_forked()) {
    for (auto& thread : threads_) static_cast<void>(thread.release());
  }
}

bool Core::is_forked() const { return ::getpid() != pid_; }

void Core::check_process() const {
  if (is_forked()) throw std::runtime_error("made before a fork: make another one in the child");
}

void Core::readdress(const Address& address) {
  check_process();
  Access access{options_, address.username, address.password, nullptr};
  if (address.tls) access.tls = std::make_shared<const TlsContext>(*address.tls);
  std::vector<Endpoint> seeds;
  for (const auto& text : address.seeds) {
    if (auto endpoint = read_endpoint(text)) seeds.push_back(std::move(*endpoint));
  }
  clustered_.store(false, std::memory_order_relaxed);
  topology_.reset(seeds, std::make_shared<const Access>(std::move(access)));
  const std::shared_lock gate(gate_);
  if (closed_.load(std::memory_order_acquire)) return;
  for (const auto& thread : threads_) thread->post({Message::Kind::kRetire});
}

void Core::close() {
  if (is_forked()) return;
  {
    const std::unique_lock gate(gate_);
    if (closed_.exchange(true, std::memory_order_acq_rel)) return;
  }
  for (const auto& thread : threads_) thread->stop();
  for (const auto& thread : threads_) thread->join();
  for (const auto& thread : threads_) thread->drain();
}

std::shared_ptr<Batch> Core::get(const Keyspace& keys, std::span<const GetRequest> requests,
                                 bool touch, Time deadline) {
  check_process();
  auto plan = plan_get(keys, requests, touch, deadline, *topology_.map(), lanes(), next_lane());
  submit(plan);
  return plan.batch;
}

std::shared_ptr<Batch> Core::put(const Keyspace& keys, std::span<const PutRequest> requests,
                                 Time deadline, Urgency urgency) {
  check_process();
  auto plan = plan_put(keys, requests, deadline, urgency, *topology_.map());
  submit(plan);
  return plan.batch;
}

std::shared_ptr<Batch> Core::call(std::vector<CallRequest> requests, Time deadline) {
  check_process();
  auto plan = plan_calls(std::move(requests), deadline, *topology_.map(), lanes());
  submit(plan);
  return plan.batch;
}

std::shared_ptr<Batch> Core::match(const Keyspace& keys, std::span<const BlockId> ids,
                                   Time deadline, MatchPlan& plan) {
  check_process();
  plan = plan_match(keys, ids, deadline, *topology_.map(), lanes());
  submit(plan.plan);
  return plan.plan.batch;
}

void Core::submit(Plan& plan) {
  const auto& batch = plan.batch;
  const auto settle_run = [&](const Run& run, Status status) {
    for (const auto index : run.operations) {
      if (batch->operations[index].kind != Kind::kPut) batch->settle_whole(index, status);
    }
  };
  const Time now = Clock::now();
  const bool full = load_->bytes.load(std::memory_order_relaxed) + plan.bytes > options_.most_bytes;
  batch->publish(load_, plan.bytes);
  const std::shared_lock gate(gate_);
  const bool closed = closed_.load(std::memory_order_acquire);
  if (closed || full) {
    if (full && !closed) dropped_.fetch_add(batch->visible, std::memory_order_relaxed);
    for (const auto& run : plan.runs) settle_run(run, closed ? Status::kClosed : Status::kDropped);
    return;
  }
  // Call `allow` once per primary and batch: a true answer may be the only probe.
  std::vector<std::pair<const Primary*, bool>> allowed;
  for (auto& run : plan.runs) {
    auto at = std::find_if(allowed.begin(), allowed.end(),
                           [&](const auto& item) { return item.first == run.primary.get(); });
    if (at == allowed.end()) {
      at = allowed.insert(at, {run.primary.get(), run.primary->breaker.allow(now)});
    }
    if (at->second) {
      post({std::move(run.primary), run.lane, batch, std::move(run.operations), Time{}});
    } else {
      batch->note("the breaker is open");
      settle_run(run, Status::kBreaker);
      suspect_topology(false, now);
    }
  }
}

void Core::post(Parcel parcel) {
  const bool is_call = parcel.lane == lanes();
  // Spread first lanes over different threads if there are enough; further lanes lie between them.
  const auto stride = std::max(1U, options_.io_threads / lanes());
  const auto turn = parcel.primary->ordinal + parcel.lane * stride;
  const auto thread = is_call ? options_.io_threads : turn % options_.io_threads;
  threads_[thread]->post({Message::Kind::kParcel, std::move(parcel)});
}

void Core::cancel(const std::shared_ptr<Batch>& batch) {
  check_process();
  batch->cancel();
  const std::shared_lock gate(gate_);
  if (closed_.load(std::memory_order_acquire)) return;
  for (const auto& thread : threads_) {
    Message message{Message::Kind::kCancel};
    message.parcel.batch = batch;
    thread->post(std::move(message));
  }
}

void Core::reroute(const Ref& ref, const ServerError& error, Time now) {
  auto& batch = *ref.batch;
  auto& operation = ref.operation();
  if (closed_.load(std::memory_order_acquire)) {
    return batch.settle_whole(ref.index, Status::kClosed);
  }
  const bool patient = error.kind == ErrorKind::kTryAgain || error.kind == ErrorKind::kOther;
  const int most = error.kind == ErrorKind::kLater ? kMostLater : kMostRedirects;
  if (!patient && operation.redirects >= most) {
    return batch.settle_whole(ref.index, Status::kUnavailable);
  }
  const int doublings = std::min<int>(operation.redirects, kMostDoublings);
  if (operation.redirects < UINT8_MAX) ++operation.redirects;
  Parcel parcel;
  if (error.kind == ErrorKind::kTryAgain || error.kind == ErrorKind::kLater) {
    parcel.not_before = now + kFirstDelay * (1 << doublings);
  }
  if (error.kind == ErrorKind::kMoved) topology_.move_slot(error.slot, error.to);
  const bool asking = error.kind == ErrorKind::kAsk;
  parcel.primary =
      asking ? topology_.primary_at(error.to) : topology_.map()->primary_of(operation.slot);
  parcel.batch = ref.batch;
  if (operation.kind == Kind::kGet) parcel.lane = ref.index % lanes();
  if (operation.kind == Kind::kCall) parcel.lane = lanes();
  if (operation.kind == Kind::kCommit) parcel.operations = batch.groups[operation.group].puts;
  parcel.operations.push_back(ref.index);
  for (const auto index : parcel.operations) {
    auto& again = batch.operations[index];
    again.asking = asking;
    again.sent = false;
    again.answer = Status::kPending;
  }
  if (parcel.primary->breaker.is_open(now)) {
    return batch.settle_whole(ref.index, Status::kBreaker);
  }
  post(std::move(parcel));
}

void Core::suspect_topology(bool clustered, Time now) {
  if (clustered) clustered_.store(true, std::memory_order_relaxed);
  if (!clustered_.load(std::memory_order_relaxed)) return;
  const auto last = Time(Duration(asked_at_.load(std::memory_order_relaxed)));
  if (now < last + kAskPause || asking_.exchange(true, std::memory_order_acq_rel)) return;
  asked_at_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  ask_topology(topology_.next_to_ask());
}

// Sends one CLUSTER SLOTS at a time; the receiving I/O thread adopts the reply.
void Core::ask_topology(const std::shared_ptr<Primary>& primary) {
  auto batch = std::make_shared<Batch>(1, Clock::now() + kAskTimeout, Urgency::kLoad);
  auto& operation = batch->operations.emplace_back();
  operation.idempotent = true;
  command::begin(operation.command, 2);
  command::argument(operation.command, std::string_view("CLUSTER"));
  command::argument(operation.command, std::string_view("SLOTS"));
  const auto& resolvers = primary->resolvers;  // empty if no seed was an address
  batch->on_done = [this, generation = topology_.generation(),
                    asked = resolvers.empty() ? Endpoint{}
                                              : resolvers.front().endpoint()](Batch& done) {
    const auto& answer = done.operations.front();
    if (answer.status == Status::kOk) {
      if (const auto ranges = read_slots(answer.reply, asked)) {
        if (topology_.adopt(*ranges, generation)) {
          for (const auto& thread : threads_) thread->post({Message::Kind::kRetire});
        }
      }
    }
    asking_.store(false, std::memory_order_release);
  };
  batch->publish(load_, 0);
  post({primary, lanes(), batch, {0}, Time{}});
}

BreakerState Core::breaker() const {
  check_process();
  const auto map = topology_.map();
  auto worst = BreakerState::kClosed;
  bool all_open = true;
  for (const auto& primary : map->primaries) {
    const auto state = primary->breaker.state();
    if (state != BreakerState::kOpen) all_open = false;
    if (state != BreakerState::kClosed) worst = BreakerState::kHalfOpen;
  }
  return all_open ? BreakerState::kOpen : worst;
}

bool Core::refuses() const {
  check_process();
  const auto map = topology_.map();
  const auto now = Clock::now();
  return std::all_of(map->primaries.begin(), map->primaries.end(),
                     [now](const auto& primary) { return primary->breaker.is_open(now); });
}

std::size_t Core::primaries() const {
  check_process();
  return topology_.map()->primaries.size();
}

Counters Core::counters() const {
  return {io_counters_.connections_opened.load(std::memory_order_relaxed),
          io_counters_.connections_lost.load(std::memory_order_relaxed),
          io_counters_.retried.load(std::memory_order_relaxed),
          dropped_.load(std::memory_order_relaxed), load_->bytes.load(std::memory_order_relaxed)};
}

}  // namespace neve
