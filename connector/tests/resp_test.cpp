#include "resp.h"

#include "check.h"

using namespace neve::resp;

namespace {

// Feeds `input` in pieces of `step` bytes, as a connection does. kNeedMore: input exhausted.
Progress feed(Parser& parser, std::string_view input, std::size_t step, std::size_t& used) {
  std::size_t offered = 0;
  used = 0;
  while (true) {
    std::size_t taken = 0;
    const auto progress = parser.feed(input.substr(used, offered - used), taken);
    used += taken;
    if (progress != Progress::kNeedMore || offered == input.size()) return progress;
    offered = std::min(input.size(), offered + step);
  }
}

Reply parse(std::string_view input, std::size_t step) {
  Parser parser;
  std::size_t used = 0;
  CHECK(feed(parser, input, step, used) == Progress::kDone);
  CHECK(used == input.size());
  return parser.take();
}

bool is_bad(std::string_view input) {
  Parser parser;
  std::size_t used = 0;
  return parser.feed(input, used) == Progress::kBad;
}

}  // namespace

TEST(replies_of_every_type_in_pieces_of_any_size) {
  for (std::size_t step = 1; step < 40; ++step) {
    CHECK(parse("+OK\r\n", step).text == "OK");
    CHECK(parse("-ERR no\r\n", step).type == Type::kError);
    CHECK(parse(":-17\r\n", step).integer == -17);
    CHECK(parse("_\r\n", step).type == Type::kNull);
    CHECK(parse("$-1\r\n", step).type == Type::kNull);
    CHECK(parse("*-1\r\n", step).type == Type::kNull);
    CHECK(parse("#t\r\n", step).integer == 1);
    CHECK(parse(",1.5\r\n", step).text == "1.5");
    CHECK(parse("(123\r\n", step).text == "123");
    CHECK(parse("$0\r\n\r\n", step).type == Type::kBulk);
    CHECK(parse("$5\r\na\r\nb\n\r\n", step).text == "a\r\nb\n");
    CHECK(parse("=7\r\ntxt:abc\r\n", step).text == "txt:abc");
    CHECK(parse("!5\r\nE why\r\n", step).type == Type::kError);
    CHECK(parse("*0\r\n", step).items.empty());
    CHECK(parse("~2\r\n:1\r\n:2\r\n", step).items.size() == 2);
    CHECK(parse("%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n", step).items.size() == 4);
    CHECK(parse(">2\r\n+message\r\n+x\r\n", step).type == Type::kPush);
    CHECK(parse("|1\r\n+ttl\r\n:3\r\n", step).type == Type::kAttribute);
    const auto nested = parse("*3\r\n*2\r\n:1\r\n$1\r\nx\r\n|1\r\n+k\r\n+v\r\n:9\r\n_\r\n", step);
    CHECK(nested.items.size() == 3);
    CHECK(nested.items[0].items[1].text == "x");
    CHECK(nested.items[1].integer == 9);  // the attribute before it is discarded
  }
}

TEST(what_follows_a_reply_is_left) {
  Parser parser;
  std::size_t used = 0;
  CHECK(parser.feed("+a\r\n+b\r\n", used) == Progress::kDone);
  CHECK(used == 4);
  CHECK(parser.take().text == "a");
  CHECK(parser.feed("+b\r\n", used) == Progress::kDone);
  CHECK(parser.take().text == "b");
}

TEST(what_is_no_reply_is_bad) {
  for (const auto* input : {"\r\n",         "\n",
                            "x\r\n",        ":\r\n",
                            ":1x\r\n",      ":99999999999999999999\r\n",
                            "$-2\r\n",      "$99999999999\r\n",
                            "$x\r\n",       "$1\r\nabc",
                            "*-2\r\n",      "*99999999\r\n",
                            "#x\r\n",       "_x\r\n",
                            "%-1\r\n",      "!-1\r\n",
                            "+a\rb\r\n",    "+a\nb\r\n",
                            "*1\r\n>0\r\n", "?\r\n"}) {
    CHECK(is_bad(input));
  }
  CHECK(is_bad(std::string(kMaxLineBytes + 1, '+')));
}

TEST(depth_items_and_bytes_are_bounded) {
  std::string deep;
  for (std::size_t i = 0; i < kMaxDepth; ++i) deep += "*1\r\n";
  CHECK(!is_bad(deep));
  CHECK(is_bad(deep + "*1\r\n"));

  std::string wide;  // many arrays with a huge announced count
  for (int i = 0; i < 4; ++i) wide += "*1048576\r\n";
  CHECK(!is_bad(wide));  // and announced counts allocate nothing
  std::string many = "*1048576\r\n";
  for (std::size_t i = 0; i + 1 < kMaxItems; ++i) many += "_\r\n";
  CHECK(is_bad(many + "_\r\n"));

  const auto half = "$" + std::to_string(kMaxBulkBytes / 2 + 100) + "\r\n";
  const std::string body(kMaxBulkBytes / 2 + 100, 'x');
  CHECK(is_bad("*2\r\n" + half + body + "\r\n" + half));
}
