// Ranged GETs of presigned URLs, over keep-alive connections, straight into the caller's memory.
//
// Each call blocks its calling thread, without Python, until its deadline at most. For any thread
// (docs/decisions/005-cold-reads.md: why not the I/O threads).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "block.h"
#include "clock.h"
#include "http.h"
#include "payload.h"
#include "socket.h"
#include "status.h"
#include "stream.h"
#include "tls.h"

namespace neve {

// Ends a read from another thread. For one read at a time.
class Stop {
 public:
  void stop();  // ends the current read soon; later reads do not begin
  bool stopped() const;
  void pause(Time until);  // sleeps until `until` or `stop`

  // During its lifetime, `stop` shuts this socket down.
  class Watch {
   public:
    Watch(Stop& stop, int fd);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Stop& stop_;
  };

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  int fd_ = -1;
};

// A block in the range. `header`: 64 bytes to fill. `codec`: how the object holds it, in
// `encoded_bytes`; `payload` gets it decoded. With `encoded_bytes` 0 the payload is taken as it
// stands, encoded or not.
struct WantedBlock {
  std::uint64_t offset = 0;  // of the header, in the object
  BlockId id{};
  std::byte* header = nullptr;
  Payload payload;
  Codec codec = Codec::kPlain;
  std::uint32_t encoded_bytes = 0;

  bool is_decoded() const { return encoded_bytes > 0; }
  std::size_t stored_bytes() const { return is_decoded() ? encoded_bytes : payload.size(); }
  std::uint64_t end() const { return offset + kHeaderBytes + stored_bytes(); }
};

enum class Failure : std::uint8_t {
  kNone,         // the server answered: see `head`
  kAddress,      // the URL is invalid
  kUnreachable,  // no connection, or TLS did not verify the server
  kBroken,       // the connection broke, or the response is not HTTP
  kLate,         // the deadline passed
  kStopped,
};

struct Answer {
  Failure failure = Failure::kNone;
  std::string trouble;  // the failure in words
  http::Head head;
  bool fits = false;           // 206 with the requested range or a beginning of it
  std::string error;           // the beginning of another response's body
  std::vector<Status> blocks;  // kOk (verified) or kCorrupt; only of blocks that were read
};

class RangedGets {
 public:
  // `ca_file`: authorities (PEM) of the servers' certificates; empty: the host's own.
  explicit RangedGets(std::string ca_file);
  ~RangedGets();

  // `blocks` are in order and within `range`; bytes between them are discarded. Blocks missing from
  // `Answer::blocks` may be partly written.
  Answer get(std::string_view url, const http::Range& range, std::span<const WantedBlock> blocks,
             Time deadline, Stop& stop);
  std::size_t kept() const;
  void close();  // closes idle connections now, busy ones after their read

 private:
  class Connection;
  struct Server;

  static void read_body(Connection& connection, const http::Range& range,
                        std::span<const WantedBlock> blocks, Time deadline, Answer& answer);
  Server& server_of(const http::Url& url);
  std::unique_ptr<Connection> take_kept(Server& server);
  void keep(Server& server, std::unique_ptr<Connection> connection);
  std::unique_ptr<Connection> connect(Server& server, const http::Url& url, Time deadline,
                                      Stop& stop);
  const TlsContext& tls();

  const std::string ca_file_;
  mutable std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Server>> servers_;  // by scheme, host, port; never removed
  std::unique_ptr<const TlsContext> tls_;                   // created on first use
  bool closed_ = false;
};

}  // namespace neve
