// One connection to one primary: connects, sends HELLO, keeps a pipeline of operations moving.
//
// A passive state machine owned by one I/O thread. The thread reports readiness and time, then
// checks whether the connection is lost and which operations were redirected. Payloads move from
// and to the caller's memory without a copy; GET replies are checksummed while in cache. A lost
// connection has closed its socket and never touches a caller's memory again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "batch.h"
#include "checksum.h"
#include "outbox.h"
#include "primary.h"
#include "resp.h"
#include "stream.h"
#include "window.h"

namespace neve {

enum class Loss : std::uint8_t {
  kNone,
  kConnect,    // no address accepted us in time
  kRefused,    // HELLO was answered with an error
  kBroken,     // closed by the server, or its bytes were no reply
  kLate,       // an operation in flight is past its deadline
  kStalled,    // operations in flight, but no byte moved for too long
  kCancelled,  // an operation in flight was cancelled
  kRetired,    // idle, and no longer wanted
  kClosed,     // the core is closing
};

struct Redirect {
  Ref ref;  // for puts: the commit of their group
  ServerError error;
};

// Counts a late batch as its primary's failure, unless its time was too short to be evidence.
void blame(Primary& primary, const Batch& batch, Time now);

class Connection {
 public:
  Connection(std::shared_ptr<Primary> primary, std::uint32_t lane, Time now);

  void enqueue(Ref ref);
  void start(Time now);  // sends enqueued operations
  void on_ready(std::uint32_t events, Time now);
  void on_time(Time now);
  void cancel(const Batch& batch);
  void retire_if_idle();
  void lose(Loss loss, std::string_view trouble);

  // Earliest time at which `on_time` has work.
  Time due() const;

  Loss loss() const { return loss_; }
  const std::string& trouble() const { return trouble_; }
  // Unsettled operations of a lost connection, in the order of sending.
  std::vector<Ref> take_refs();
  std::vector<Redirect> take_redirects();

  const std::shared_ptr<Primary>& primary() const { return primary_; }
  std::uint32_t lane() const { return lane_; }
  bool is_clustered() const { return clustered_; }  // as HELLO answered
  const Endpoint& endpoint() const { return endpoint_; }

  // For the thread's epoll: the socket, the count of its replacements, the events to watch.
  int fd() const { return stream_.fd(); }
  std::uint32_t socket_serial() const { return socket_serial_; }
  std::uint32_t interest() const;
  void watched_by(int epoll) { stream_.watched_by(epoll); }

 private:
  enum class State : std::uint8_t { kResolving, kConnecting, kTls, kHello, kReady, kLost };
  enum class Reading : std::uint8_t { kLine, kReply, kValue, kSkip, kTail };

  // connection.cpp
  void connect_next(Time now);
  void forget_session();
  void begin_session(Time now);
  void say_hello(Time now);
  void on_hello(const resp::Reply& reply, Time now);
  void pump(Time now);
  bool drop_if_over(const Ref& ref, Time now);
  void give_up(const Ref& ref, Status status, Time now);
  void encode(const Ref& ref);
  void encode_put(Operation& operation, const Batch& batch);
  void flush(Time now);
  bool in_flight_of(const Batch& batch) const;
  Ref* next_waiting();

  // connection_receive.cpp
  void receive(Time now);
  bool receive_value(Time now);
  bool receive_text(Time now);
  bool parse(Time now);
  bool begin_value(const resp::Line& line);
  std::size_t take_text(std::span<std::byte> into);

  // connection_answers.cpp
  void answer(resp::Reply&& reply, Time now);
  void settle_value();
  void answer_get(const Ref& ref, const resp::Reply& reply, Time now);
  void answer_put(const Ref& ref, const resp::Reply& reply);
  void answer_commit(const Ref& ref, const resp::Reply& reply, Time now);
  void answer_call(const Ref& ref, resp::Reply&& reply, Time now);
  Status status_of(const Ref& ref, ErrorKind kind, std::string_view text, Time now);
  Ref pop_in_flight();

  const std::shared_ptr<Primary> primary_;
  const std::uint32_t lane_;
  const Options& options_;

  State state_ = State::kResolving;
  Stream stream_;
  std::uint32_t socket_serial_ = 0;
  std::size_t next_resolver_ = 0;
  std::vector<SocketAddress> candidates_;
  Endpoint endpoint_;
  bool clustered_ = false;
  Time connect_until_;
  Time look_again_at_{};  // next poll of a running name look-up
  Time moved_at_;

  std::array<std::deque<Ref>, kUrgencies> waiting_;
  std::deque<Ref> in_flight_;
  WindowShare asked_;                // payload bytes of GETs in flight
  Time earliest_deadline_ = kNever;  // lower bound over operations that wait or are in flight
  Outbox outbox_;

  Reading reading_ = Reading::kLine;
  std::vector<std::byte> text_;  // received, not yet parsed: text_[text_start_, text_end_)
  std::size_t text_start_ = 0;
  std::size_t text_end_ = 0;
  resp::Parser parser_;
  alignas(8) std::array<std::byte, kHeaderBytes> header_{};
  std::size_t value_at_ = 0;  // bytes received of the current value, header included
  std::size_t skip_left_ = 0;
  std::uint64_t received_bytes_ = 0;
  bool fits_ = false;  // the current value has the expected length
  Checksum checksum_;

  Loss loss_ = Loss::kNone;
  std::string trouble_;
  std::vector<Redirect> redirects_;
};

}  // namespace neve
