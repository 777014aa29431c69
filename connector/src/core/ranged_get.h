// Ranged GETs of presigned addresses, over kept connections, straight into the caller's memory.
//
// Each call waits in the thread that makes it, without Python, and ends by its deadline. For any
// thread (docs/decisions/005-cold-reads.md says why these are not the I/O threads).
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
#include "socket.h"
#include "status.h"
#include "stream.h"
#include "tls.h"

namespace neve {

// Ends a read from another thread. One read at a time may have it.
class Stop {
 public:
  void stop();  // what is under way ends soon, what would begin does not
  bool stopped() const;
  void pause(Time until);  // sleeps, but not beyond `stop`

  // While it lives, `stop` shuts this socket down.
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

// A block of the range. `header` has room for 64 bytes.
struct WantedBlock {
  std::uint64_t offset = 0;  // of the header, in the object
  BlockId id{};
  std::byte* header = nullptr;
  std::span<std::byte> payload;

  std::uint64_t end() const { return offset + kHeaderBytes + payload.size(); }
};

enum class Failure : std::uint8_t {
  kNone,         // the server answered: see `head`
  kAddress,      // no address that could be asked
  kUnreachable,  // no connection, or a server that proves nothing
  kBroken,       // the connection broke, or what came is no HTTP
  kLate,         // the deadline passed
  kStopped,
};

struct Answer {
  Failure failure = Failure::kNone;
  std::string trouble;  // of the failure, in words
  http::Head head;
  bool fits = false;           // 206, and the range that was asked for or its beginning
  std::string error;           // how the body of another answer begins
  std::vector<Status> blocks;  // kOk (verified) or kCorrupt, as far as they were read
};

class RangedGets {
 public:
  // `ca_file`: of who signs the servers' certificates; empty: the host's own authorities.
  explicit RangedGets(std::string ca_file);
  ~RangedGets();

  // `blocks` are in order and within `range`; what lies between them is thrown away. A block may be
  // written to though it is none of `Answer::blocks`.
  Answer get(std::string_view url, const http::Range& range, std::span<const WantedBlock> blocks,
             Time deadline, Stop& stop);
  std::size_t kept() const;
  void close();  // ends connections that nobody uses; the others end after their use

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
  std::map<std::string, std::unique_ptr<Server>> servers_;  // by scheme, host and port; they stay
  std::unique_ptr<const TlsContext> tls_;                   // made when first needed
  bool closed_ = false;
};

}  // namespace neve
