// One connection to a scripted server.

#include "connection.h"

#include <sys/epoll.h>

#include "check.h"
#include "plan.h"
#include "scripted.h"

using namespace neve;
using namespace neve::testing;

namespace {

// A connection after HELLO, and the server's end of it.
struct Pair {
  Pair() {
    map.primaries = {std::make_shared<Primary>(std::vector{listener.endpoint()},
                                               std::make_shared<const Access>(), 0)};
    connection = std::make_unique<Connection>(map.primaries[0], 0, now);
    connection->start(now);
    server = listener.accept();
    connection->on_ready(EPOLLOUT, now);
    hear(kHello);
  }

  void hear(std::string_view text) {
    CHECK(say(server, text));
    connection->on_ready(EPOLLIN, now);
  }

  void ask(Plan& plan) {
    plan.batch->publish(std::make_shared<Load>(), plan.bytes);
    for (const auto index : plan.runs[0].operations) connection->enqueue({plan.batch, index});
    connection->start(now);
  }

  const Time now = Clock::now();
  Listener listener;
  TopologyMap map;
  std::unique_ptr<Connection> connection;
  Descriptor server;
};

Keyspace keys() {
  Keyspace keys;
  keys.buckets.push_back({"{t7.0}:b:1:", "", 0});
  return keys;
}

}  // namespace

TEST(only_a_number_of_the_commit_says_that_a_block_is_stored) {
  Pair pair;
  const std::array<std::byte, 100> payload{};
  const std::vector<PutRequest> requests(4, {BlockId{}, BlockId{}, 16, payload});
  auto plan = plan_put(keys(), requests, kNever, Urgency::kStore, pair.map);
  pair.ask(plan);
  pair.hear("+OK\r\n+OK\r\n+OK\r\n+OK\r\n*4\r\n:0\r\n_\r\n$1\r\n0\r\n-ERR\r\n");
  CHECK(plan.batch->done());
  CHECK(plan.batch->operations[0].status == Status::kOk);
  for (std::size_t i = 1; i < 4; ++i) CHECK(plan.batch->operations[i].status == Status::kError);
}
