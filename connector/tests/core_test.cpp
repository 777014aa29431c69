// The core against a real valkey-server, under stress; run with sanitizers.

#include "core.h"

#include <atomic>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "check.h"
#include "command.h"
#include "scripted.h"
#include "server.h"

using namespace neve;
using namespace neve::testing;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kPayload = 300'000;

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

CallRequest command_of(const std::vector<std::string>& arguments) {
  CallRequest request;
  command::begin(request.command, arguments.size());
  for (const auto& argument : arguments)
    command::argument(request.command, std::string_view(argument));
  return request;
}

Status call(Core& core, const std::vector<std::string>& arguments, Duration time = 5s) {
  const auto batch = core.call({command_of(arguments)}, Clock::now() + time);
  batch->wait_until(kNever);
  return batch->operations[0].status;
}

Keyspace make_keys() {
  Keyspace keys;
  keys.space_id = 1;
  for (int i = 0; i < 3; ++i) {
    const std::string tag = "{t7." + std::to_string(i) + ".0}:";
    Bucket bucket;
    bucket.block_prefix = tag + "b:1:";
    bucket.slot = slot_of(bucket.block_prefix);
    for (const auto* name : {"i", "l", "d", "u", "q", "x", "e"}) {
      command::argument(bucket.bookkeeping, std::string_view(tag + name));
    }
    keys.buckets.push_back(bucket);
  }
  return keys;
}

// Repeats the call until it succeeds: an earlier test may have opened the breaker.
void insist(Core& core, const std::vector<std::string>& arguments) {
  const auto until = Clock::now() + 20s;
  while (call(core, arguments) != Status::kOk) {
    const bool in_time = Clock::now() < until;
    CHECK(in_time);
    if (!in_time) return;
    std::this_thread::sleep_for(50ms);
  }
}

// The functions' source, assembled as in neve.index.library.
std::string functions_source() {
  const std::string folder = std::string(NEVE_FUNCTIONS) + "/";
  std::istringstream names(read_file(folder + "order.txt"));
  std::string source = "#!lua name=neve\n";
  for (std::string name; names >> name;) source += read_file(folder + name + ".lua");
  return source;
}

void provision(Core& core) {
  insist(core, {"FUNCTION", "LOAD", "REPLACE", functions_source()});
  for (int i = 0; i < 3; ++i) {
    insist(core, {"HSET", "{t7." + std::to_string(i) + ".0}:q", "hot_bytes", "1000000000",
                  "cold_bytes", "0", "flush_after_s", "-1", "ttl_s", "0"});
  }
}

// Blocks with random bytes, and buffers to load them into.
struct Blocks {
  explicit Blocks(unsigned seed, std::size_t count = 24) : ids(count), sent(count), back(count) {
    std::mt19937_64 random(seed);
    for (std::size_t i = 0; i < count; ++i) {
      for (auto& byte : ids[i]) byte = std::byte(random());
      sent[i].resize(kPayload + i);
      for (auto& byte : sent[i]) byte = std::byte(random());
      back[i].resize(sent[i].size());
    }
  }

  std::shared_ptr<Batch> put(Core& core, const Keyspace& keys, Duration time = 20s) {
    std::vector<PutRequest> requests;
    for (std::size_t i = 0; i < ids.size(); ++i) requests.push_back({ids[i], ids[0], 256, sent[i]});
    return core.put(keys, requests, Clock::now() + time, Urgency::kStore);
  }

  std::shared_ptr<Batch> get(Core& core, const Keyspace& keys, Duration time = 20s) {
    std::vector<GetRequest> requests;
    for (std::size_t i = 0; i < ids.size(); ++i) requests.push_back({ids[i], back[i], nullptr});
    return core.get(keys, requests, true, Clock::now() + time);
  }

  // Waits; checks every block that is reported as loaded. Returns their number.
  std::size_t check(const std::shared_ptr<Batch>& batch) {
    batch->wait_until(kNever);
    std::size_t good = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (batch->operations[i].status != Status::kOk) continue;
      ++good;
      CHECK(back[i] == sent[i]);
    }
    for (auto& buffer : back) std::fill(buffer.begin(), buffer.end(), std::byte{});
    return good;
  }

  std::vector<BlockId> ids;
  std::vector<std::vector<std::byte>> sent;
  std::vector<std::vector<std::byte>> back;
};

Options small_windows() {
  Options options;
  options.window_bytes = 1 << 20;
  options.io_threads = 3;
  return options;
}

}  // namespace

TEST(blocks_come_back_and_are_matched) {
  Server server;
  Core core(small_windows(), {{server.seed()}, "", {}, {}});
  const auto keys = make_keys();
  provision(core);
  Blocks blocks(1);
  auto stored = blocks.put(core, keys);
  stored->wait_until(kNever);
  for (std::size_t i = 0; i < 24; ++i) CHECK(stored->operations[i].status == Status::kOk);
  CHECK(blocks.check(blocks.get(core, keys)) == 24);
  MatchPlan plan;
  const auto match = core.match(keys, blocks.ids, Clock::now() + 5s, plan);
  match->wait_until(kNever);
  Status status = Status::kPending;
  CHECK(matched_rows(*match, plan, status).size() == 24 * kEntryBytes);
  CHECK(status == Status::kOk);
  CHECK(core.counters().bytes_waiting == 0);
}

TEST(threads_share_a_core_while_batches_are_cancelled_and_dropped) {
  Server server;
  Core core(small_windows(), {{server.seed()}, "", {}, {}});
  const auto keys = make_keys();
  provision(core);
  std::atomic<std::size_t> good{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Blocks blocks(100 + t);
      for (int round = 0; round < 12; ++round) {
        const auto stored = blocks.put(core, keys);
        if ((round + t) % 3 == 0) core.cancel(stored);
        stored->wait_until(kNever);
        const auto loading = blocks.get(core, keys);
        if ((round + t) % 4 == 0) {
          std::this_thread::sleep_for(1ms);
          core.cancel(loading);
        }
        good += blocks.check(loading);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(good > 0);
  CHECK(call(core, {"PING"}) == Status::kOk);
}

TEST(a_stopped_server_is_left_at_the_deadline_and_memory_is_free_then) {
  Server server;
  Core core(small_windows(), {{server.seed()}, "", {}, {}});
  const auto keys = make_keys();
  provision(core);
  auto blocks = std::make_unique<Blocks>(1);
  blocks->put(core, keys)->wait_until(kNever);
  for (int round = 0; round < 3; ++round) {
    const auto early = blocks->get(core, keys, 300ms);
    server.pause();
    const auto late = blocks->get(core, keys, 300ms);
    const auto started = Clock::now();
    blocks->check(early);
    blocks->check(late);
    CHECK(Clock::now() - started < 1500ms);
    auto other = std::make_unique<Blocks>(2);
    const auto storing = other->put(core, keys, 200ms);
    storing->wait_until(kNever);
    other.reset();  // a sanitizer reports any later access to its memory
    server.resume();
    insist(core, {"PING"});
    CHECK(blocks->check(blocks->get(core, keys)) == 24);
  }
}

TEST(a_server_that_is_killed_and_restarted_under_load) {
  Server server;
  Core core(small_windows(), {{server.seed()}, "", {}, {}});
  const auto keys = make_keys();
  provision(core);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Blocks blocks(t);
      while (!stop) {
        blocks.put(core, keys, 2s)->wait_until(kNever);
        blocks.check(blocks.get(core, keys, 2s));
        std::this_thread::sleep_for(2ms);
      }
    });
  }
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(300ms);
    server.kill();
    std::this_thread::sleep_for(100ms);
    server.start();
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  core.readdress({{server.seed()}, "", {}, {}});  // as after a handshake: new breakers
  provision(core);
  Blocks blocks(9);
  blocks.put(core, keys)->wait_until(kNever);
  CHECK(blocks.check(blocks.get(core, keys)) == 24);
}

TEST(closing_ends_everything_and_readdressing_goes_on) {
  Server server;
  const auto keys = make_keys();
  for (int round = 0; round < 10; ++round) {
    Blocks blocks(3), others(4);
    std::vector<std::shared_ptr<Batch>> batches;
    {
      Core core(small_windows(), {{server.seed()}, "", {}, {}});
      if (round == 0) provision(core);
      std::thread other([&] {
        for (int i = 0; i < 5; ++i) core.readdress({{server.seed()}, "", {}, {}});
      });
      for (auto* each : {&blocks, &others}) {  // concurrent loads need buffers of their own
        batches.push_back(each->get(core, keys));
        batches.push_back(each->put(core, keys));
      }
      other.join();
      if (round % 2 == 0) std::this_thread::sleep_for(round * 1ms);
    }
    for (const auto& batch : batches) CHECK(batch->done());
  }
}

TEST(a_cancelled_probe_is_followed_by_another) {
  Server server;
  Core core(small_windows(), {{server.seed()}, "", {}, {}});
  server.kill();
  for (int i = 0; i < 3; ++i) CHECK(call(core, {"PING"}) == Status::kUnavailable);
  CHECK(core.refuses());
  server.start();
  server.pause();
  while (core.refuses()) std::this_thread::sleep_for(10ms);
  const auto probe = core.call({command_of({"PING"})}, Clock::now() + 20s);
  CHECK(call(core, {"PING"}) == Status::kBreaker);
  core.cancel(probe);
  probe->wait_until(kNever);
  server.resume();
  CHECK(call(core, {"PING"}) == Status::kOk);
}

TEST(an_address_that_does_not_answer_is_followed_by_the_next) {
  const Listener silent, good;
  auto options = small_windows();
  options.connect_timeout = 100ms;
  Core core(options, {{silent.seed(), good.seed()}, "", {}, {}});
  const auto batch = core.call({command_of({"PING"})}, Clock::now() + 10s);
  const auto server = good.accept();
  say(server, kHello);
  CHECK(hear(server, "PING").find("PING") != std::string::npos);
  say(server, "+PONG\r\n");
  batch->wait_until(kNever);
  CHECK(batch->operations[0].status == Status::kOk);
}

TEST(what_shares_a_connection_with_cancelled_batches_is_asked_again_each_time) {
  const Listener listener;
  auto options = small_windows();
  options.lanes = options.io_threads = 1;
  Core core(options, {{listener.seed()}, "", {}, {}});
  const auto keys = make_keys();
  Blocks patient(1, 1), other(2, 1);
  const auto get = [&](Blocks& blocks) {
    const std::vector<GetRequest> requests{{blocks.ids[0], blocks.back[0], nullptr}};
    return core.get(keys, requests, false, Clock::now() + 60s);
  };
  const auto waiting = get(patient);
  auto server = listener.accept();
  for (int round = 0; round < 4; ++round) {
    say(server, kHello);
    hear(server, "GET");
    const auto cancelled = get(other);
    hear(server, "GET");
    core.cancel(cancelled);
    cancelled->wait_until(kNever);
    CHECK(cancelled->operations[0].status == Status::kCancelled);
    CHECK(hangs_up(server));
    server = listener.accept();
  }
  say(server, kHello);
  hear(server, "GET");
  say(server, "$-1\r\n");
  waiting->wait_until(kNever);
  CHECK(waiting->operations[0].status == Status::kEvicted);
}

// A forked child inherits sockets; connections that the parent closes must end nevertheless.
TEST(a_forked_child_keeps_no_connection_alive_and_refuses_to_work) {
  const Listener listener;
  auto core = std::make_unique<Core>(small_windows(), Address{{listener.seed()}, "", {}, {}});
  const auto ask = [&] { return core->call({command_of({"PING"})}, Clock::now() + 60s); };
  const auto given_up = ask();
  auto server = listener.accept();
  say(server, kHello);
  hear(server, "PING");
  std::array<int, 2> pipe{};
  CHECK(::pipe(pipe.data()) == 0);
  const Descriptor told(pipe[0]), teller(pipe[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);  // ends a child that hangs
    try {
      ask();
    } catch (const std::runtime_error&) {
      core.reset();
      if (::write(teller.get(), "x", 1) == 1) ::pause();
    }
    ::_exit(EXIT_FAILURE);
  }
  core->cancel(given_up);
  given_up->wait_until(kNever);
  CHECK(hangs_up(server));
  server.reset();  // would wake epoll if the old socket were still registered
  const auto again = ask();
  server = listener.accept();
  say(server, kHello);
  hear(server, "PING");
  say(server, "+PONG\r\n");
  again->wait_until(kNever);
  CHECK(again->operations[0].status == Status::kOk);
  pollfd ready{.fd = told.get(), .events = POLLIN, .revents = 0};
  CHECK(::poll(&ready, 1, 10'000) == 1);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST(queues_hear_of_each_batch_once) {
  Server server;
  Core core(small_windows(), {{server.seed()}, "", {}, {}});
  const auto queue = std::make_shared<CompletionQueue>();
  std::atomic<int> claimed{0};
  std::thread taker([&] {
    while (!queue->stopped()) claimed += static_cast<int>(queue->wait(kNever).size());
  });
  int waited = 0;
  for (int i = 0; i < 300; ++i) {
    const auto batch = core.call({command_of({"PING"})}, Clock::now() + 5s);
    batch->notify(queue);
    bool ours = false;
    if (i % 2 == 0) batch->wait_claim(kNever, ours);
    waited += ours;
  }
  const auto until = Clock::now() + 10s;
  while (claimed + waited < 300 && Clock::now() < until) std::this_thread::sleep_for(1ms);
  CHECK(claimed + waited == 300);
  queue->stop();
  taker.join();
}

TEST(more_than_the_bound_is_dropped_and_counted) {
  Server server;
  auto options = small_windows();
  options.most_bytes = 10 * kPayload;
  Core core(options, {{server.seed()}, "", {}, {}});
  const auto keys = make_keys();
  Blocks blocks(1);
  const auto batch = blocks.put(core, keys);
  batch->wait_until(kNever);
  for (std::size_t i = 0; i < 24; ++i) CHECK(batch->operations[i].status == Status::kDropped);
  CHECK(core.counters().dropped == 24);
}
