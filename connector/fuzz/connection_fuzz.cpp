// A connection to a server that says anything, in pieces of any size: each operation ends as the
// plain parser's reading of the same bytes says, loads only with the very bytes, stores only with a
// commit that says so; nothing is settled twice, and what is not settled is handed back.

#include <sys/epoll.h>

#include <set>

#include "../tests/runs.h"
#include "../tests/scripted.h"
#include "connection.h"
#include "input.h"
#include "plan.h"

using namespace neve;

namespace {

constexpr std::array<std::size_t, 3> kSizes{1, 100, 700};

BlockId id_of(std::size_t number) {
  BlockId id{};
  id[15] = std::byte(number + 1);
  return id;
}

std::vector<std::byte> payload_of(std::size_t number) {
  std::vector<std::byte> payload(kSizes[number]);
  for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = std::byte(i * 7 + number);
  return payload;
}

std::string value_of(std::size_t number) {
  const auto payload = payload_of(number);
  std::array<std::byte, kHeaderBytes> header;
  encode_header({.id = id_of(number),
                 .parent = {},
                 .tokens = 16,
                 .payload_bytes = static_cast<std::uint32_t>(payload.size()),
                 .payload_checksum = checksum(payload),
                 .tag = {}},
                header);
  std::string value(reinterpret_cast<const char*>(header.data()), header.size());
  value.append(reinterpret_cast<const char*>(payload.data()), payload.size());
  return value;
}

// The input as the server's words: bytes below 4 stand for what a fuzzer would not find.
std::string words_of(fuzzing::Input input) {
  static const std::array values{value_of(0), value_of(1), value_of(2)};
  std::string words;
  while (!input.empty()) {
    const auto byte = input.byte();
    if (byte == 0) {
      const unsigned what = input.byte();
      auto value = values[what % 3];
      if (what & 64) value[(input.byte() * 256U + input.byte()) % value.size()] ^= 1;
      if (what & 128) value.pop_back();
      words += "$" + std::to_string(value.size()) + "\r\n" + value + "\r\n";
    } else if (byte == 1) {
      const unsigned what = input.byte();
      words +=
          "*2\r\n:" + std::to_string(what % 5) + "\r\n:" + std::to_string(what / 5 % 5) + "\r\n";
    } else if (byte == 2) {
      words += "+OK\r\n";
    } else if (byte == 3) {
      words += "_\r\n";
    } else {
      words += static_cast<char>(byte);
    }
  }
  return words;
}

struct Asked {
  Ref ref;
  std::size_t get = 0;  // number, of a kGet
};

struct World {
  std::vector<std::vector<std::byte>> loaded, stored;
  std::vector<std::array<std::byte, kHeaderBytes>> headers;
  std::vector<std::shared_ptr<Batch>> batches;
  std::vector<Asked> asked;  // in the order of sending; an empty one for each ASKING
};

World ask(Connection& connection, const TopologyMap& map, unsigned asking) {
  World world;
  Keyspace keys;
  keys.buckets.push_back({"{t7.0}:b:1:", "", 0});
  world.headers.resize(kSizes.size());
  std::vector<GetRequest> gets;
  for (std::size_t i = 0; i < kSizes.size(); ++i) world.loaded.emplace_back(kSizes[i]);
  for (std::size_t i = 0; i < kSizes.size(); ++i) {
    const auto run = i % 2 == 0 ? kSizes[i] : 7;
    gets.push_back({id_of(i), testing::in_runs(world.loaded[i], run), world.headers[i].data()});
  }
  std::vector<PutRequest> puts;
  for (std::size_t i = 0; i < 2; ++i) world.stored.push_back(payload_of(i));
  for (std::size_t i = 0; i < 2; ++i) {
    puts.push_back({id_of(i), id_of(2), 16, testing::in_runs(world.stored[i], 30)});
  }
  std::vector<CallRequest> calls(2, {"*1\r\n$4\r\nPING\r\n", 0, false});
  std::vector<Plan> plans;
  plans.push_back(plan_get(keys, gets, true, kNever, map, 1, 0));
  plans.push_back(plan_calls(calls, kNever, map, 1));
  plans.push_back(plan_put(keys, puts, kNever, Urgency::kStore, map));
  for (auto& plan : plans) {
    plan.batch->publish(std::make_shared<Load>(), plan.bytes);
    world.batches.push_back(plan.batch);
    CLAIM(plan.runs.size() == 1);
    for (const auto index : plan.runs[0].operations) {
      auto& operation = plan.batch->operations[index];
      operation.asking = asking & 1;
      asking >>= 1;
      if (operation.asking) world.asked.push_back({});
      world.asked.push_back({{plan.batch, index}, index});
      connection.enqueue({plan.batch, index});
    }
  }
  return world;
}

// The server's replies as the plain parser reads them, each with the bytes that it was read from.
struct Said {
  resp::Reply reply;
  std::string_view raw;
};

std::vector<Said> read_replies(std::string_view words) {
  std::vector<Said> all;
  resp::Parser parser;
  std::size_t used = 0;
  while (parser.feed(words, used) == resp::Progress::kDone) {
    all.push_back({parser.take(), words.substr(0, used)});
    words.remove_prefix(used);
    const auto type = all.back().reply.type;
    if (type == resp::Type::kPush || type == resp::Type::kAttribute) all.pop_back();
  }
  return all;
}

// How an operation ends by `said`; kPending: it goes elsewhere.
Status expected(const Asked& asked, const Said& said) {
  if (said.reply.type == resp::Type::kError) {
    const auto kind = read_error(said.reply.text, {}).kind;
    if (is_redirect(kind)) return Status::kPending;
    return kind == ErrorKind::kQuota     ? Status::kQuota
           : kind == ErrorKind::kCorrupt ? Status::kCorrupt
           : kind == ErrorKind::kRefused ? Status::kRefused
                                         : Status::kError;
  }
  if (asked.ref.operation().kind == Kind::kCall) return Status::kOk;
  if (said.reply.type == resp::Type::kNull) return Status::kEvicted;
  const auto whole = value_of(asked.get);
  if (said.raw.front() != '$' || said.reply.text.size() != whole.size()) return Status::kCorrupt;
  // Tokens, parent and tag are the header's own matter, as long as its checksum covers them.
  const auto text = std::as_bytes(std::span(said.reply.text));
  const auto header = decode_header(text.first<kHeaderBytes>());
  const bool right = header && header->codec == Codec::kPlain && header->id == id_of(asked.get) &&
                     header->payload_bytes == kSizes[asked.get] &&
                     header->payload_checksum == checksum(text.subspan(kHeaderBytes));
  return right ? Status::kOk : Status::kCorrupt;
}

void check(const World& world, const std::vector<Said>& replies,
           const std::vector<Redirect>& redirects) {
  std::set<std::pair<const Batch*, std::uint32_t>> elsewhere;
  for (const auto& [ref, error] : redirects) {
    CLAIM(is_redirect(error.kind));
    CLAIM(elsewhere.insert({ref.batch.get(), ref.index}).second);
  }
  for (std::size_t i = 0; i < world.asked.size(); ++i) {
    const auto& asked = world.asked[i];
    if (!asked.ref.batch) continue;
    const auto& operation = asked.ref.operation();
    const bool moved = elsewhere.contains({asked.ref.batch.get(), asked.ref.index});
    if (i >= replies.size()) {
      CLAIM(operation.status == Status::kPending && !moved);
    } else if (operation.kind == Kind::kGet || operation.kind == Kind::kCall) {
      CLAIM(operation.status == expected(asked, replies[i]));
      CLAIM(moved == (operation.status == Status::kPending));
      if (operation.kind != Kind::kGet || operation.status != Status::kOk) continue;
      CLAIM(world.loaded[asked.get] == payload_of(asked.get));
      CLAIM(decode_header(world.headers[asked.get])->id == id_of(asked.get));
    } else if (operation.kind == Kind::kCommit) {
      const auto& group = asked.ref.batch->groups[operation.group];
      const auto& answer = replies[i].reply;
      for (std::size_t put = 0; put < group.puts.size(); ++put) {
        const auto status = asked.ref.batch->operations[group.puts[put]].status;
        CLAIM((status == Status::kPending) == moved);
        if (status != Status::kOk && status != Status::kPresent) continue;
        CLAIM(answer.type == resp::Type::kArray && answer.items.size() == group.puts.size());
        CLAIM(answer.items[put].type == resp::Type::kInteger);
        CLAIM(answer.items[put].integer == (status == Status::kOk ? 0 : 1));
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const testing::Listener listener;
  static const auto access = std::make_shared<const Access>();
  fuzzing::Input input(data, size);
  const auto seed = input.byte();
  const unsigned asking = input.byte();
  const auto words = words_of(input);

  TopologyMap map;
  map.primaries = {std::make_shared<Primary>(std::vector{listener.endpoint()}, access, 0)};
  const auto now = Clock::now();
  Connection connection(map.primaries[0], 0, now);
  const auto world = ask(connection, map, asking);
  connection.start(now);
  const auto server = listener.accept();
  CLAIM(server.is_open());
  connection.on_ready(EPOLLOUT, now);
  const auto say = [&](std::string_view piece) {
    CLAIM(testing::say(server, piece));
    connection.on_ready(EPOLLIN | EPOLLOUT, now);
  };
  say(testing::kHello);
  CLAIM(connection.loss() == Loss::kNone);
  fuzzing::Pieces pieces(words, seed);
  while (!pieces.empty() && connection.loss() == Loss::kNone) say(pieces.next());

  const auto redirects = connection.take_redirects();
  check(world, read_replies(words), redirects);
  ::shutdown(server.get(), SHUT_RDWR);
  connection.on_ready(EPOLLIN | EPOLLHUP, now);
  CLAIM(connection.loss() == Loss::kBroken);
  CLAIM(map.primaries[0]->window.asked_bytes() == 0);
  std::set<std::pair<const Batch*, std::uint32_t>> back;
  for (const auto& ref : connection.take_refs()) {
    CLAIM(ref.operation().status == Status::kPending);
    CLAIM(back.insert({ref.batch.get(), ref.index}).second);
  }
  return 0;
}
