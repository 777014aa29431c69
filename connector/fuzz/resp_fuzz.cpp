// Replies read in pieces of any size are those read at once; what was read, written again as RESP3,
// reads as the same.

#include <string>

#include "input.h"
#include "resp.h"

using namespace neve::resp;
using neve::fuzzing::alone;
using neve::fuzzing::Input;
using neve::fuzzing::Pieces;

namespace {

// `budget`: items that may still come of one reply.
void write(const Reply& reply, std::size_t depth, std::size_t& budget, std::string& out) {
  CLAIM(budget > 0 && depth <= kMaxDepth);
  --budget;
  const auto line = [&](char kind, const std::string& text) { out += kind + text + "\r\n"; };
  const auto bulk = [&](char kind) {
    CLAIM(reply.text.size() <= kMaxBulkBytes);
    line(kind, std::to_string(reply.text.size()));
    out += reply.text + "\r\n";
  };
  switch (reply.type) {
    case Type::kNull:
      return line('_', "");
    case Type::kText:
      return line('+', reply.text);
    case Type::kError:
      return bulk('!');
    case Type::kInteger:
      return line(':', std::to_string(reply.integer));
    case Type::kBoolean:
      CLAIM(reply.integer == 0 || reply.integer == 1);
      return line('#', reply.integer != 0 ? "t" : "f");
    case Type::kBulk:
      return bulk('$');
    case Type::kArray:
      line('*', std::to_string(reply.items.size()));
      break;
    case Type::kPush:
      CLAIM(depth == 0);
      line('>', std::to_string(reply.items.size()));
      break;
    case Type::kAttribute:
      CLAIM(depth == 0 && reply.items.size() % 2 == 0);
      line('|', std::to_string(reply.items.size() / 2));
  }
  for (const auto& item : reply.items) write(item, depth + 1, budget, out);
}

std::string write(const Reply& reply) {
  std::string out;
  std::size_t budget = kMaxItems;
  write(reply, 0, budget, out);
  return out;
}

struct Read {
  std::vector<std::string> replies;
  Progress end = Progress::kNeedMore;

  bool operator==(const Read&) const = default;
};

// Takes what can be taken of `waiting`, which is left with the rest.
void feed(Parser& parser, std::string& waiting, Read& read) {
  read.end = Progress::kDone;
  while (read.end == Progress::kDone) {
    const auto offered = alone(waiting);
    std::size_t used = 0;
    read.end = parser.feed({offered.data(), offered.size()}, used);
    CLAIM(used <= offered.size());
    waiting.erase(0, used);
    if (read.end == Progress::kDone) read.replies.push_back(write(parser.take()));
  }
  if (read.end == Progress::kNeedMore) CLAIM(waiting.size() < kMaxLineBytes);
}

Read read_at_once(std::string_view text) {
  Read read;
  Parser parser;
  std::string waiting(text);
  feed(parser, waiting, read);
  return read;
}

Read read_in(Pieces pieces) {
  Read read;
  Parser parser;
  std::string waiting;
  while (!pieces.empty() && read.end != Progress::kBad) {
    waiting += pieces.next();
    feed(parser, waiting, read);
  }
  return read;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const auto seed = input.byte();
  const auto whole = read_at_once(input.rest());
  CLAIM(read_in(Pieces(input.rest(), seed)) == whole);
  std::string again;
  for (const auto& reply : whole.replies) again += reply;
  CLAIM(read_at_once(again).replies == whole.replies);
  return 0;
}
