#include "ranged_get.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "checksum.h"

namespace neve {
namespace {

constexpr Duration kMostIdle =
    std::chrono::seconds(15);  // SeaweedFS and S3 close idle connections after 20 s or more
// Buffer for response heads. Small, because payload bytes that land here must be copied.
constexpr std::size_t kAheadBytes = 1024;
constexpr std::size_t kErrorBytes = std::size_t{4}
                                    << 10;  // code and message stand at the beginning
constexpr std::size_t kMostDrained = std::size_t{64} << 10;  // else a new connection is cheaper
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;    // still in cache when checksummed
constexpr std::size_t kRuns = 64;  // of a payload, that one call of the system fills
constexpr int kPartial = 206;

// A thread's memory for an encoded payload, kept while it lives. `Of` tells two of them apart.
enum class Of : std::uint8_t { kEncoded, kDecoded };
template <Of of>
std::span<std::byte> room_for(std::size_t size) {
  thread_local std::vector<std::byte> room;
  if (room.size() < size) room.resize(size);
  return std::span(room).first(size);
}

// The decoder needs its output in one run.
bool decode(std::span<const std::byte> encoded, const Payload& payload) {
  if (payload.is_whole()) return shuffle_zstd_decode(encoded, payload.whole());
  const auto whole = room_for<Of::kDecoded>(payload.size());
  if (!shuffle_zstd_decode(encoded, whole)) return false;
  payload.write(0, whole);
  return true;
}

// Callers see it only as an `Answer`.
class Failed : public std::runtime_error {
 public:
  Failed(Failure failure, const std::string& what) : std::runtime_error(what), failure(failure) {}
  const Failure failure;
};

// Waits for `events`; returns whether `fd` was ready by `until`.
bool wait_for(int fd, short events, Time until) {
  pollfd ready{.fd = fd, .events = events, .revents = 0};
  while (true) {
    const auto now = Clock::now();
    if (now >= until) return false;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - now).count();
    const int found = ::poll(&ready, 1, static_cast<int>(std::min<std::int64_t>(left, 60'000)));
    if (found > 0) return true;
    if (found < 0 && errno != EINTR) throw Failed(Failure::kBroken, "poll failed");
  }
}

// Shuffles the addresses of the first one's family, so that all servers of a name get load.
void spread(std::vector<SocketAddress>& addresses) {
  thread_local std::minstd_rand chance{std::random_device{}()};
  const auto family = addresses.front().storage.ss_family;
  const auto others =
      std::stable_partition(addresses.begin(), addresses.end(),
                            [&](const auto& it) { return it.storage.ss_family == family; });
  std::shuffle(addresses.begin(), others, chance);
}

// `stored`: what the object holds. Decodes it into the block's payload if that is wanted.
bool finish_block(const WantedBlock& block, const Payload& stored, const Checksum& sum) {
  const auto header = decode_header(ConstRawHeader(block.header, kHeaderBytes));
  if (!header || header->id != block.id || header->codec != block.codec ||
      header->payload_checksum != sum.digest()) {
    return false;
  }
  const bool is_raw = block.is_decoded() || block.codec == Codec::kPlain;
  if (is_raw && header->payload_bytes != block.payload.size()) return false;
  return !block.is_decoded() || decode(stored.whole(), block.payload);
}

}  // namespace

void Stop::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  // Without TLS's close_notify, which could block.
  if (fd_ >= 0) ::shutdown(fd_, SHUT_RDWR);
  changed_.notify_all();
}

bool Stop::stopped() const {
  const std::lock_guard lock(mutex_);
  return stopped_;
}

void Stop::pause(Time until) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, until, [this] { return stopped_; });
}

Stop::Watch::Watch(Stop& stop, int fd) : stop_(stop) {
  const std::lock_guard lock(stop.mutex_);
  if (stop.stopped_) throw Failed(Failure::kStopped, "stopped");
  stop.fd_ = fd;
}

Stop::Watch::~Watch() {
  const std::lock_guard lock(stop_.mutex_);
  stop_.fd_ = -1;
}

// For one request at a time. Its methods throw Failed.
class RangedGets::Connection {
 public:
  explicit Connection(Stream stream) : stream_(std::move(stream)) {}

  int fd() const { return stream_.fd(); }
  // No byte of a response arrived: the server may have closed a kept connection before our request.
  bool heard_nothing() const { return ahead_.empty(); }

  // Waits for the connect until `share`, then for TLS (if any) until `deadline`.
  void establish(const TlsContext* tls, const std::string& host, Time share, Time deadline) {
    if (!wait_for(fd(), POLLOUT, share)) throw Failed(Failure::kLate, "timed out");
    if (const int error = connect_error(fd()); error != 0) {
      throw Failed(Failure::kUnreachable, std::generic_category().message(error));
    }
    if (tls == nullptr) return;
    stream_.start_tls(*tls, host);
    while (true) {
      const auto result = stream_.handshake();
      if (result == IoResult::kDone) return;
      go_on(result, deadline);
    }
  }

  void ask(std::string_view request, Time deadline) {
    is_finished_ = false;
    while (!request.empty()) {
      const std::array<iovec, 1> from{
          iovec{const_cast<char*>(request.data()), request.size()}};  // only read
      std::size_t count = 0;
      const auto result = stream_.write(from, count);
      if (result != IoResult::kDone) go_on(result, deadline, POLLOUT);
      request.remove_prefix(count);
    }
  }

  http::Head hear(Time deadline) {
    while (true) {
      http::Head head;
      std::size_t used = 0;
      const auto progress = http::read_head(ahead_, used, head);
      if (progress == http::Progress::kBad) throw Failed(Failure::kBroken, "no answer of HTTP/1.1");
      if (progress == http::Progress::kDone) {
        ahead_.erase(0, used);
        if (head.status >= 200) return head;  // 1xx: the final response follows
        continue;
      }
      std::array<char, kAheadBytes> piece;
      const std::array<iovec, 1> into{iovec{piece.data(), piece.size()}};
      ahead_.append(piece.data(), read_some(into, deadline));
    }
  }

  // Reads the blocks that lie wholly within `range`; blocks that end behind it are corrupt.
  void read_blocks(const http::Range& range, std::span<const WantedBlock> blocks, Time deadline,
                   std::vector<Status>& outcomes) {
    auto at = range.first;
    for (const auto& block : blocks) {
      if (block.end() - 1 > range.last) {
        outcomes.push_back(Status::kCorrupt);
        continue;
      }
      skip(block.offset - at, deadline);
      sum_.reset();
      const auto stored =
          block.is_decoded() ? Payload(room_for<Of::kEncoded>(block.encoded_bytes)) : block.payload;
      read_exactly({block.header, kHeaderBytes}, stored, deadline);
      at = block.end();
      outcomes.push_back(finish_block(block, stored, sum_) ? Status::kOk : Status::kCorrupt);
    }
    left_ = range.last + 1 - at;
  }

  // Reads the first 4 KiB of an error response. Never throws: a partial error text will do.
  std::string read_error(const http::Head& head, Time deadline) {
    std::string text;
    left_ = head.length;
    const auto most = std::min<std::uint64_t>(head.length.value_or(kErrorBytes), kErrorBytes);
    try {
      while (text.size() < most && !(head.chunked && text.ends_with("\r\n0\r\n\r\n"))) {
        std::array<std::byte, kAheadBytes> piece;
        const auto want = std::min<std::size_t>(piece.size(), most - text.size());
        const auto count = take(std::span(piece).first(want), deadline);
        text.append(reinterpret_cast<const char*>(piece.data()), count);
        if (left_) *left_ -= count;
      }
    } catch (const Failed&) {
      left_.reset();
    }
    return text;
  }

  // Reads a short rest of the response, so that the connection can be reused.
  void finish(const http::Head& head, Time deadline) {
    if (!left_ || *left_ > kMostDrained || !head.keeps) return;
    try {
      skip(*left_, deadline);
    } catch (const Failed&) {
      return;
    }
    left_.reset();
    used_at_ = Clock::now();
    is_finished_ = ahead_.empty();
  }
  bool is_finished() const { return is_finished_; }

  // True if the connection was not idle for long and received neither bytes nor a close since.
  bool is_usable() const {
    pollfd ready{.fd = fd(), .events = POLLIN, .revents = 0};
    return Clock::now() - used_at_ < kMostIdle && ::poll(&ready, 1, 0) == 0;
  }

 private:
  void go_on(IoResult result, Time deadline, short events = POLLIN) {
    if (result != IoResult::kWouldBlock) throw Failed(Failure::kBroken, stream_.trouble());
    if (stream_.is_tls()) events = stream_.wants_write() ? POLLOUT : POLLIN;
    if (!wait_for(fd(), events, deadline)) throw Failed(Failure::kLate, "no answer in time");
  }

  std::size_t read_some(std::span<const iovec> into, Time deadline) {
    while (true) {
      if (Clock::now() >= deadline) throw Failed(Failure::kLate, "no answer in time");
      std::size_t count = 0;
      const auto result = stream_.read(into, count);
      if (result == IoResult::kDone) return count;
      go_on(result, deadline);
    }
  }

  // Reads at least one byte, from `ahead_` first.
  std::size_t take(std::span<std::byte> into, Time deadline) {
    const std::array<iovec, 1> whole{iovec{into.data(), into.size()}};
    if (ahead_.empty()) return read_some(whole, deadline);
    const auto count = std::min(into.size(), ahead_.size());
    std::memcpy(into.data(), ahead_.data(), count);
    ahead_.erase(0, count);
    return count;
  }

  void skip(std::uint64_t bytes, Time deadline) {
    std::array<std::byte, 16 << 10> waste;
    while (bytes > 0) {
      const auto want = static_cast<std::size_t>(std::min<std::uint64_t>(bytes, waste.size()));
      bytes -= take(std::span(waste).first(want), deadline);
    }
  }

  // Fills both; adds payload bytes to `sum_` as they arrive.
  void read_exactly(std::span<std::byte> header, const Payload& payload, Time deadline) {
    while (!header.empty() && !ahead_.empty()) header = header.subspan(take(header, deadline));
    std::size_t at = 0;  // bytes of the payload
    while (!header.empty() || at < payload.size()) {
      std::array<iovec, kRuns + 1> into{iovec{header.data(), header.size()}};
      std::size_t runs = 0;
      payload.vectors(at, kPieceBytes, std::span(into).subspan(1), runs);
      std::size_t count = 0;
      if (ahead_.empty()) {
        count = read_some(std::span(into).first(1 + runs), deadline);
      } else {
        count = take({static_cast<std::byte*>(into[1].iov_base), into[1].iov_len}, deadline);
      }
      const auto of_header = std::min(count, header.size());
      header = header.subspan(of_header);
      payload.add_to(sum_, at, count - of_header);
      at += count - of_header;
    }
  }

  Stream stream_;
  std::string ahead_;                  // received, not yet used
  std::optional<std::uint64_t> left_;  // unread bytes of the response; nullopt: unknown
  bool is_finished_ = false;           // the last response was read to its end
  Checksum sum_;
  Time used_at_{};
};

struct RangedGets::Server {
  explicit Server(Endpoint where) : resolver(std::move(where)) {}
  Resolver resolver;
  std::vector<std::unique_ptr<Connection>> kept;
};

RangedGets::RangedGets(std::string ca_file) : ca_file_(std::move(ca_file)) {}
RangedGets::~RangedGets() = default;

void RangedGets::read_body(Connection& connection, const http::Range& range,
                           std::span<const WantedBlock> blocks, Time deadline, Answer& answer) {
  const auto& head = answer.head;
  answer.fits = head.status == kPartial && head.range && head.range->first == range.first &&
                head.range->last <= range.last && head.length == head.range->size();
  if (answer.fits) {
    connection.read_blocks(*head.range, blocks, deadline, answer.blocks);
  } else {
    answer.error = connection.read_error(head, deadline);
  }
  connection.finish(head, deadline);
}

Answer RangedGets::get(std::string_view text, const http::Range& range,
                       std::span<const WantedBlock> blocks, Time deadline, Stop& stop) {
  Answer answer;
  try {
    const auto url = http::read_url(text);
    if (!url) throw Failed(Failure::kAddress, "no address to read from");
    auto& server = server_of(*url);
    const auto request = http::range_request(*url, range);
    while (true) {
      if (stop.stopped()) throw Failed(Failure::kStopped, "stopped");
      auto connection = take_kept(server);
      const bool was_kept = connection != nullptr;
      if (!was_kept) connection = connect(server, *url, deadline, stop);
      try {
        const Stop::Watch watch(stop, connection->fd());
        connection->ask(request, deadline);
        answer.head = connection->hear(deadline);
        read_body(*connection, range, blocks, deadline, answer);
      } catch (const Failed& failed) {
        const bool ended_before =
            was_kept && answer.head.status == 0 && connection->heard_nothing();
        if (failed.failure != Failure::kBroken || !ended_before) throw;
        continue;
      }
      if (connection->is_finished()) keep(server, std::move(connection));
      return answer;
    }
  } catch (const Failed& failed) {
    answer.failure = failed.failure;
    answer.trouble = failed.what();
  } catch (const std::exception& error) {  // TlsError, or out of descriptors or threads
    answer.failure = Failure::kUnreachable;
    answer.trouble = error.what();
  }
  if (stop.stopped()) answer.failure = Failure::kStopped;
  return answer;
}

std::size_t RangedGets::kept() const {
  const std::lock_guard lock(mutex_);
  std::size_t count = 0;
  for (const auto& [name, server] : servers_) count += server->kept.size();
  return count;
}

void RangedGets::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& [name, server] : servers_) server->kept.clear();
}

RangedGets::Server& RangedGets::server_of(const http::Url& url) {
  const std::lock_guard lock(mutex_);
  auto& server = servers_[(url.tls ? "https://" : "http://") + url.where.name()];
  if (!server) server = std::make_unique<Server>(url.where);
  return *server;
}

std::unique_ptr<RangedGets::Connection> RangedGets::take_kept(Server& server) {
  const std::lock_guard lock(mutex_);
  while (!server.kept.empty()) {
    auto connection = std::move(server.kept.back());
    server.kept.pop_back();
    if (connection->is_usable()) return connection;
  }
  return nullptr;
}

void RangedGets::keep(Server& server, std::unique_ptr<Connection> connection) {
  const std::lock_guard lock(mutex_);
  if (!closed_) server.kept.push_back(std::move(connection));
}

// Tries the server's addresses in turn, each for its share of the remaining time.
std::unique_ptr<RangedGets::Connection> RangedGets::connect(Server& server, const http::Url& url,
                                                            Time deadline, Stop& stop) {
  static const bool avoid_bbr = std::getenv("NEVE_KEEP_CONGESTION_CONTROL") == nullptr;
  const auto where = url.where.name();
  auto addresses = server.resolver.wait(deadline);
  if (!addresses) throw Failed(Failure::kLate, "no address of " + url.where.host + " in time");
  if (addresses->empty()) throw Failed(Failure::kUnreachable, where + ": no such host");
  spread(*addresses);
  std::string trouble;
  bool late = false;
  for (std::size_t i = 0; i < addresses->size(); ++i) {
    const auto now = Clock::now();
    if (now >= deadline) break;
    const auto share = now + (deadline - now) / static_cast<Duration::rep>(addresses->size() - i);
    Descriptor fd = begin_connect((*addresses)[i], avoid_bbr);
    if (!fd.is_open()) {
      trouble = std::generic_category().message(errno);
      continue;
    }
    auto connection = std::make_unique<Connection>(Stream(std::move(fd)));
    try {
      const Stop::Watch watch(stop, connection->fd());
      connection->establish(url.tls ? &tls() : nullptr, url.where.host, share, deadline);
    } catch (const Failed& failed) {
      if (failed.failure == Failure::kStopped) throw;
      late = failed.failure == Failure::kLate;
      trouble = failed.what();
      continue;
    }
    return connection;
  }
  if (late || Clock::now() >= deadline) {
    throw Failed(Failure::kLate, "no connection to " + where + " in time");
  }
  throw Failed(Failure::kUnreachable, where + ": " + trouble);
}

const TlsContext& RangedGets::tls() {
  const std::lock_guard lock(mutex_);
  if (!tls_) {
    TlsOptions options;
    options.ca_file = ca_file_;
    tls_ = std::make_unique<const TlsContext>(options);
  }
  return *tls_;
}

}  // namespace neve
