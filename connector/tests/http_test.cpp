// HTTP/1.1 heads and URLs, and ranged GETs from a scripted server.

#include "http.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "check.h"
#include "checksum.h"
#include "ranged_get.h"
#include "runs.h"
#include "scripted.h"

using namespace neve;
using namespace neve::testing;
using namespace std::chrono_literals;

namespace {

// Answers of this program's resolver: see `getaddrinfo` below.
struct Names {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> addresses;  // of three.test
  bool hangs = false;                  // while set, look-ups of hanging.test block
} names;

constexpr std::size_t kPayload = 3000;
constexpr std::uint64_t kFirst = 64;
constexpr std::uint64_t kSize = kHeaderBytes + kPayload;

// Adjacent valid blocks, as in a segment, and memory to read them into.
struct Segment {
  explicit Segment(std::size_t count = 3) : payloads(count), headers(count) {
    for (std::size_t i = 0; i < count; ++i) {
      std::string payload(kPayload, static_cast<char>('a' + i));
      BlockHeader header;
      header.id[0] = std::byte(i + 1);
      header.tokens = 256;
      header.payload_bytes = kPayload;
      header.payload_checksum = checksum(std::as_bytes(std::span(payload)));
      std::array<std::byte, kHeaderBytes> raw;
      encode_header(header, raw);
      body.append(reinterpret_cast<const char*>(raw.data()), raw.size()).append(payload);
      payloads[i].resize(kPayload);
      wanted.push_back({kFirst + i * kSize, header.id, headers[i].data(), payloads[i]});
    }
  }

  http::Range range() const { return {wanted.front().offset, wanted.back().end() - 1}; }
  std::string answer() const { return partial(range()) + body; }
  static std::string partial(const http::Range& range, const std::string& more = "") {
    return "HTTP/1.1 206 -\r\nContent-Length: " + std::to_string(range.size()) +
           "\r\nContent-Range: bytes " + std::to_string(range.first) + "-" +
           std::to_string(range.last) + "/9999999\r\n" + more + "\r\n";
  }
  bool is_read() const {
    std::string text;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
      text.append(reinterpret_cast<const char*>(headers[i].data()), kHeaderBytes);
      text.append(reinterpret_cast<const char*>(payloads[i].data()), kPayload);
    }
    return text == body;
  }

  std::string body;
  std::vector<std::vector<std::byte>> payloads;
  std::vector<std::array<std::byte, kHeaderBytes>> headers;
  std::vector<WantedBlock> wanted;
};

// Listens on 127.0.0.1 and calls `serve` for each connection, in a separate thread.
class HttpServer {
 public:
  using Serve = std::function<void(const Descriptor&)>;

  explicit HttpServer(Serve serve)
      : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), serve_(std::move(serve)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (::bind(fd_.get(), generic, size) != 0 || ::listen(fd_.get(), 64) != 0 ||
        ::getsockname(fd_.get(), generic, &size) != 0) {
      throw std::runtime_error("cannot listen");
    }
    port = ntohs(address.sin_port);
    thread_ = std::thread([this] { accept_all(); });
  }
  ~HttpServer() {
    ::shutdown(fd_.get(), SHUT_RDWR);
    thread_.join();
    for (auto& each : open_) ::shutdown(each->get(), SHUT_RDWR);
    for (auto& each : threads_) each.join();
  }

  std::string url(const std::string& host = "127.0.0.1") const {
    return "http://" + host + ":" + std::to_string(port) + "/segment?signed=yes";
  }

  std::uint16_t port = 0;
  std::atomic<int> connections{0};

 private:
  void accept_all() {
    while (true) {
      auto client =
          std::make_unique<Descriptor>(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client->is_open()) return;
      ++connections;
      open_.push_back(std::move(client));
      threads_.emplace_back([this, sock = open_.back().get()] {
        serve_(*sock);
        ::shutdown(sock->get(), SHUT_RDWR);
      });
    }
  }

  Descriptor fd_;
  Serve serve_;
  std::vector<std::unique_ptr<Descriptor>> open_;
  std::vector<std::thread> threads_;
  std::thread thread_;
};

// Sends `answer` to each request of a connection, `piece` bytes at a time.
HttpServer::Serve saying(std::string answer, std::size_t piece = 1 << 20) {
  return [=](const Descriptor& sock) {
    while (hear(sock, "\r\n\r\n").ends_with("\r\n\r\n")) {
      for (std::size_t at = 0; at < answer.size(); at += piece) {
        if (!say(sock, std::string_view(answer).substr(at, piece))) return;
      }
    }
  };
}

Answer get(RangedGets& gets, const std::string& url, Segment& segment, Duration time = 10s) {
  Stop stop;
  return gets.get(url, segment.range(), segment.wanted, Clock::now() + time, stop);
}

std::optional<http::Head> read(std::string_view text) {
  http::Head head;
  std::size_t used = 0;
  if (http::read_head(text, used, head) != http::Progress::kDone) return std::nullopt;
  return head;
}

}  // namespace

// Replaces the C library's function, so that tests choose the addresses of names.
extern "C" int getaddrinfo(const char* node, const char* service, const addrinfo*,
                           addrinfo** found) {
  std::unique_lock lock(names.mutex);
  if (std::strcmp(node, "hanging.test") == 0) {
    names.changed.wait(lock, [] { return !names.hangs; });
  }
  if (std::strcmp(node, "three.test") != 0) return EAI_NONAME;
  *found = nullptr;
  for (auto at = names.addresses.rbegin(); at != names.addresses.rend(); ++at) {
    auto* entry = new addrinfo{};
    auto* address = new sockaddr_in{};
    address->sin_family = AF_INET;
    address->sin_port = htons(static_cast<std::uint16_t>(std::atoi(service)));
    ::inet_pton(AF_INET, at->c_str(), &address->sin_addr);
    entry->ai_addr = reinterpret_cast<sockaddr*>(address);
    entry->ai_addrlen = sizeof *address;
    entry->ai_next = *found;
    *found = entry;
  }
  return 0;
}

extern "C" void freeaddrinfo(addrinfo* list) {
  while (list != nullptr) {
    auto* next = list->ai_next;
    delete reinterpret_cast<sockaddr_in*>(list->ai_addr);
    delete list;
    list = next;
  }
}

TEST(addresses_are_taken_apart) {
  const auto url = http::read_url("https://s3.test:8333/bucket/key?X-Amz-Date=1#part");
  CHECK((url == http::Url{true, {"s3.test", 8333}, "s3.test:8333", "/bucket/key?X-Amz-Date=1"}));
  CHECK(http::read_url("http://s3.test:80?x")->authority == "s3.test");
  CHECK(http::read_url("http://s3.test:80?x")->target == "/?x");
  CHECK(http::read_url("https://s3.test:80/")->authority == "s3.test:80");
  CHECK((http::read_url("http://[::1]:9/")->where == Endpoint{"::1", 9}));
  CHECK(http::read_url("http://[::1]/")->authority == "[::1]");
  for (const auto* bad :
       {"", "x", "ftp://h/x", "http://", "http:///x", "http://h:/x", "http://h:p/x", "http://h:0/",
        "http://h:65536/", "http://[::1/x", "http://[]/x", "http://[::1]x/", "http://h/a b",
        "http://h/a\r\nHost: x", "http://u@h/"}) {
    CHECK(!http::read_url(bad));
  }
}

TEST(a_request_asks_for_a_range) {
  const auto url = http::read_url("http://h:9/k?s");
  CHECK(http::range_request(*url, {5, 9}) ==
        "GET /k?s HTTP/1.1\r\nHost: h:9\r\nRange: bytes=5-9\r\nAccept-Encoding: identity\r\n\r\n");
}

TEST(content_ranges) {
  CHECK((http::read_content_range("bytes 0-9/100") == http::Range{0, 9}));
  CHECK((http::read_content_range("bytes 5-5/*") == http::Range{5, 5}));
  for (const auto* bad : {"", "bytes */100", "bytes 5-x/7", "items 0-9/100", "bytes 9-5/10",
                          "bytes -5/10", "bytes 5-/10", "bytes 5--6/10", "bytes 1"}) {
    CHECK(!http::read_content_range(bad));
  }
}

TEST(heads_are_read_whole_or_not_at_all) {
  const std::string text =
      "HTTP/1.1 206 Partial Content\r\nCONTENT-LENGTH: 10 \r\ncontent-range:bytes 0-9/99\r\n"
      "Date: Sun, 29 Nov 2026 14:00:00 GMT\r\nRetry-After: 7\r\nX: \r\n\r\nbody";
  const http::Head expected{
      206, 10, false, true, http::Range{0, 9}, 7, "Sun, 29 Nov 2026 14:00:00 GMT"};
  CHECK(read(text) == expected);
  for (std::size_t size = 0; size < text.size() - 4; ++size) CHECK(!read(text.substr(0, size)));

  CHECK(read("HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n")->chunked);
  CHECK(!read("HTTP/1.1 200\r\nConnection: a, Close\r\n\r\n")->keeps);
  CHECK(!read("HTTP/1.0 200 OK\r\n\r\n")->keeps);
  for (const auto* status : {"100", "204", "304"}) {
    for (const auto* field : {"", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"}) {
      const auto head = read("HTTP/1.1 " + std::string(status) + " -\r\n" + field + "\r\n");
      CHECK(head && head->length == 0 && !head->chunked);
    }
  }
  CHECK(read("HTTP/1.1 503 x\r\nRetry-After: Sun, 29 Nov\r\n\r\n")->retry_after_s == 0);
  for (const auto* bad :
       {"nonsense\r\n\r\n", "HTTP/2.0 200 x\r\n\r\n", "HTTP/1.1 20\r\n\r\n",
        "HTTP/1.1 2000\r\n\r\n", "HTTP/1.1 099 x\r\n\r\n", "HTTP/1.1 200 x\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 x\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 x\r\nContent-Length:\r\n\r\n",
        "HTTP/1.1 200 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 x\r\nTransfer-Encoding: gzip\r\n\r\n"}) {
    http::Head head;
    std::size_t used = 0;
    CHECK(http::read_head(bad, used, head) == http::Progress::kBad);
  }
  http::Head head;
  std::size_t used = 0;
  CHECK(http::read_head(std::string(http::kMaxHeadBytes, 'x'), used, head) == http::Progress::kBad);
}

TEST(blocks_land_in_their_own_memory_however_the_answer_is_cut) {
  for (const std::size_t piece : {1U << 20, 4096U, 777U, 65U}) {
    Segment segment;
    const HttpServer server(saying(segment.answer(), piece));
    RangedGets gets("");
    for (int i = 0; i < 2; ++i) {
      const auto answer = get(gets, server.url(), segment);
      CHECK(answer.failure == Failure::kNone && answer.fits);
      CHECK(answer.blocks == std::vector(3, Status::kOk));
      CHECK(segment.is_read());
      CHECK(gets.kept() == 1);
    }
    CHECK(server.connections == 1);
  }
}

TEST(blocks_land_in_memory_of_many_runs) {
  for (const std::size_t piece : {1U << 20, 777U, 65U}) {
    Segment segment;
    const HttpServer server(saying(segment.answer(), piece));
    for (std::size_t i = 0; i < 3; ++i) {
      segment.wanted[i].payload = in_runs(segment.payloads[i], 10 + 40 * i);
    }
    RangedGets gets("");
    CHECK(get(gets, server.url(), segment).blocks == std::vector(3, Status::kOk));
    CHECK(segment.is_read());
  }
}

TEST(bytes_between_blocks_are_thrown_away) {
  Segment segment;
  const HttpServer server(saying(segment.answer()));
  segment.wanted.erase(segment.wanted.begin() + 1);
  RangedGets gets("");
  CHECK(get(gets, server.url(), segment).blocks == std::vector(2, Status::kOk));
  CHECK(segment.payloads[1] == std::vector<std::byte>(kPayload));
}

TEST(a_small_block_behind_a_large_one_is_not_waited_for) {
  Segment segment(200);  // more bytes than one read returns, then a gap and one block
  const HttpServer server(saying(segment.answer(), 300'000));
  segment.wanted.erase(segment.wanted.begin() + 198);
  RangedGets gets("");
  for (int i = 0; i < 2; ++i) {
    const auto answer = get(gets, server.url(), segment, 5s);
    CHECK(answer.blocks == std::vector(199, Status::kOk));
  }
  CHECK(server.connections == 1);
}

TEST(a_block_that_is_wrong_or_missing_is_corrupt) {
  Segment segment;
  auto body = segment.body;
  body[kSize + 100] ^= 1;
  const auto range = segment.range();
  const auto cut = http::Range{range.first, range.last - 1};
  const HttpServer server(saying(Segment::partial(cut) + body.substr(0, cut.size())));
  RangedGets gets("");
  const auto answer = get(gets, server.url(), segment);
  CHECK((answer.blocks == std::vector{Status::kOk, Status::kCorrupt, Status::kCorrupt}));
  CHECK(gets.kept() == 1);
}

TEST(only_the_range_that_was_asked_for_fits) {
  Segment segment;
  const auto [first, last] = segment.range();
  for (const auto& other : {http::Range{first - 1, last}, {first, last + 1}, {first + 1, last}}) {
    const HttpServer server(saying(Segment::partial(other) + std::string(other.size(), 'x')));
    RangedGets gets("");
    const auto answer = get(gets, server.url(), segment);
    CHECK(answer.failure == Failure::kNone && answer.head.status == 206);
    CHECK(!answer.fits && answer.blocks.empty());
  }
}

TEST(an_error_shows_how_its_body_begins) {
  const std::string document = "<Error><Code>SlowDown</Code></Error>";
  const auto length = "Content-Length: " + std::to_string(document.size());
  const auto chunk = "24\r\n" + document + "\r\n0\r\n\r\n";
  Segment segment;
  for (const auto& [said, keeps] : {std::pair{length + "\r\n\r\n" + document, true},
                                    {"Transfer-Encoding: chunked\r\n\r\n" + chunk, false}}) {
    const HttpServer server(saying("HTTP/1.1 503 -\r\n" + said));
    RangedGets gets("");
    const auto answer = get(gets, server.url(), segment);
    CHECK(answer.head.status == 503 && answer.error.find(document) != std::string::npos);
    CHECK(gets.kept() == (keeps ? 1U : 0U));
  }
}

TEST(a_kept_connection_that_ended_costs_no_failure) {
  Segment segment;
  const HttpServer server([&](const Descriptor& sock) {
    hear(sock, "\r\n\r\n");
    say(sock, segment.answer());
  });
  RangedGets gets("");
  for (int i = 0; i < 3; ++i) CHECK(get(gets, server.url(), segment).fits);
  CHECK(server.connections == 3);
}

TEST(a_broken_answer_says_what_came_before) {
  Segment segment;
  const HttpServer server([&](const Descriptor& sock) {
    hear(sock, "\r\n\r\n");
    const auto answer = segment.answer();
    say(sock, std::string_view(answer).substr(0, answer.size() - 1));
  });
  RangedGets gets("");
  const auto answer = get(gets, server.url(), segment);
  CHECK(answer.failure == Failure::kBroken && gets.kept() == 0);
  CHECK(answer.blocks == std::vector(2, Status::kOk));
}

TEST(all_servers_of_a_name_are_tried) {
  Segment segment;
  const HttpServer server(saying(segment.answer()));
  names.addresses = {"127.0.0.2", "127.0.0.3", "127.0.0.1"};  // no server on the first two
  RangedGets gets("");
  CHECK(get(gets, server.url("three.test"), segment).fits);
}

TEST(a_name_that_nobody_has_is_unreachable) {
  Segment segment;
  RangedGets gets("");
  const auto answer = get(gets, "http://nobody.test/x", segment);
  CHECK(answer.failure == Failure::kUnreachable);
  CHECK(answer.trouble == "nobody.test:80: no such host");
}

TEST(a_resolver_that_hangs_is_left_at_the_deadline) {
  Segment segment;
  RangedGets gets("");
  names.hangs = true;
  CHECK(get(gets, "http://hanging.test/x", segment, 100ms).failure == Failure::kLate);
  const std::lock_guard lock(names.mutex);
  names.hangs = false;
  names.changed.notify_all();
}

TEST(stopping_ends_what_waits_and_what_would_begin) {
  Segment segment;
  const HttpServer server([](const Descriptor& sock) { hear(sock, "never"); });
  RangedGets gets("");
  Stop stop;
  std::thread other([&] {
    while (server.connections == 0) std::this_thread::sleep_for(1ms);
    stop.stop();
  });
  for (int i = 0; i < 2; ++i) {
    const auto answer = gets.get(server.url(), segment.range(), segment.wanted, kNever, stop);
    CHECK(answer.failure == Failure::kStopped);
  }
  other.join();
  CHECK(server.connections == 1);
  stop.pause(kNever);  // returns at once
}

TEST(threads_share_connections_while_others_stop) {
  Segment pattern;
  const HttpServer server(saying(pattern.answer(), 2000));
  RangedGets gets("");
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int thread = 0; thread < 6; ++thread) {
    threads.emplace_back([&, thread] {
      Segment segment;
      for (int i = 0; i < 20; ++i) {
        Stop stop;
        std::thread stopper;
        if (thread % 2 == 1) stopper = std::thread([&] { stop.stop(); });
        const auto answer =
            gets.get(server.url(), segment.range(), segment.wanted, Clock::now() + 10s, stop);
        const bool fine = answer.fits && segment.is_read();
        if (!(answer.failure == Failure::kStopped || fine)) ++wrong;
        if (stopper.joinable()) stopper.join();
      }
    });
  }
  for (auto& each : threads) each.join();
  CHECK(wrong == 0);
  gets.close();
  CHECK(gets.kept() == 0);
}
