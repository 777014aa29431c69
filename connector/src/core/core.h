// The client core: I/O threads, the topology of the servers, and submission of batches.
// All methods are for any thread and never wait for the network. In a forked child, which lacks the
// I/O threads, all methods but `close` and `is_forked` throw std::runtime_error.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "io_thread.h"
#include "plan.h"
#include "topology.h"

namespace neve {

struct Address {
  std::vector<std::string> seeds;  // "host:port" or "unix:/path"; alternatives, or cluster nodes
  std::string username;
  std::optional<std::string> password;
  std::optional<TlsOptions> tls;
};

struct Counters {
  std::uint64_t connections_opened = 0;
  std::uint64_t connections_lost = 0;
  std::uint64_t retried = 0;        // operations sent again after a redirect or a lost connection
  std::uint64_t dropped = 0;        // operations beyond Options::most_bytes
  std::uint64_t bytes_waiting = 0;  // of batches in flight now
};

class Core final : public Router {
 public:
  // Throws TlsError if the address requires TLS that cannot be set up.
  Core(const Options& options, const Address& address);
  ~Core() override;  // closes

  // Switches later batches to other servers or credentials.
  void readdress(const Address& address);
  // Settles all operations as closed. After it returns, no thread uses callers' memory.
  void close();

  std::shared_ptr<Batch> get(const Keyspace& keys, std::span<const GetRequest> requests, bool touch,
                             Time deadline);
  std::shared_ptr<Batch> put(const Keyspace& keys, std::span<const PutRequest> requests,
                             Time deadline, Urgency urgency);
  std::shared_ptr<Batch> call(std::vector<CallRequest> requests, Time deadline);
  // `plan`: output, the input of `matched_rows`.
  std::shared_ptr<Batch> match(const Keyspace& keys, std::span<const BlockId> ids, Time deadline,
                               MatchPlan& plan);
  void cancel(const std::shared_ptr<Batch>& batch);

  // The worst state of all primaries; open only if all of them refuse.
  BreakerState breaker() const;
  // Whether every primary's breaker refuses now. Uses up no probe.
  bool refuses() const;
  std::size_t primaries() const;
  Counters counters() const;

  void reroute(const Ref& ref, const ServerError& error, Time now) override;
  void suspect_topology(bool clustered, Time now) override;

  bool is_forked() const;
  void check_process() const;  // throws in a forked child

 private:
  void submit(Plan& plan);
  void post(Parcel parcel);
  void ask_topology(const std::shared_ptr<Primary>& primary);
  std::uint32_t lanes() const { return options_.lanes; }
  std::uint32_t next_lane() { return turn_.fetch_add(1, std::memory_order_relaxed); }

  const pid_t pid_ = ::getpid();
  const Options options_;
  Topology topology_;
  IoCounters io_counters_;
  const std::shared_ptr<Load> load_ = std::make_shared<Load>();
  std::atomic<std::uint64_t> dropped_{0};  // relaxed: a total that orders nothing
  std::atomic<std::uint32_t> turn_{0};     // relaxed: only spreads small batches
  std::atomic<bool> clustered_{false};     // relaxed: a hint, cleared only by a reset
  // Steady time of the last CLUSTER SLOTS, and whether its reply is still to come.
  std::atomic<Duration::rep> asked_at_{0};
  std::atomic<bool> asking_{false};
  // Shared by posting submitters, exclusive in `close`: nothing is posted to ended threads.
  std::shared_mutex gate_;
  std::atomic<bool> closed_{false};  // release in close, acquire in reroute
  // The last thread serves calls only, so that look-ups do not wait behind block bytes.
  std::vector<std::unique_ptr<IoThread>> threads_;
};

}  // namespace neve
