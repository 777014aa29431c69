// RESP2 and RESP3 replies, read piece by piece. Pure: no I/O, no clock; bounded in depth, items and
// bytes whatever the input. Fuzzed (fuzz/resp_fuzz.cpp). One parser belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace neve::resp {

inline constexpr std::size_t kMaxBulkBytes = std::size_t{80} << 20;  // above any block
inline constexpr std::size_t kMaxItems = std::size_t{1} << 20;       // of one reply, nested too
inline constexpr std::size_t kMaxDepth = 8;
inline constexpr std::size_t kMaxLineBytes = 15 << 10;  // fits a connection's buffer

enum class Type : std::uint8_t {
  kNull,
  kText,  // simple string, double, big number: unparsed
  kError,
  kInteger,
  kBoolean,
  kBulk,   // also verbatim strings, their three-letter format included
  kArray,  // also sets, and maps as key, value, key, value …
  kPush,
  kAttribute,
};

struct Reply {
  Type type = Type::kNull;
  std::int64_t integer = 0;  // kInteger, kBoolean
  std::string text;          // kText, kError, kBulk
  std::vector<Reply> items;  // kArray, kPush, kAttribute
};

enum class Progress : std::uint8_t { kNeedMore, kDone, kBad };

// The first line of a reply: its kind, and the text between the kind and CRLF.
struct Line {
  char kind = 0;
  std::string_view text;
  std::size_t bytes = 0;  // CRLF included
};

// kBad if the line is empty, too long or contains a bare CR or LF.
Progress read_line(std::string_view input, Line& line);

// Parses a decimal integer that fills the whole text. False: no integer, or out of range.
bool read_integer(std::string_view text, std::int64_t& value);

class Parser {
 public:
  // Parses on; `used`: consumed bytes of `input`. The caller passes the rest again, with more bytes
  // behind it. After kDone, `take` returns the reply; after kBad, the stream is unusable.
  Progress feed(std::string_view input, std::size_t& used);

  Reply take();

 private:
  struct Frame {
    Reply reply;
    std::size_t left = 0;
  };

  Progress begin_value(const Line& line);
  Progress begin_items(Type type, std::string_view count, std::size_t factor);
  Progress begin_bulk(Type type, std::string_view length);
  Progress end_value(Reply&& value);

  std::vector<Frame> frames_;
  Reply done_;
  Reply bulk_;  // incomplete while in_bulk_
  bool in_bulk_ = false;
  std::size_t bulk_left_ = 0;
  std::size_t items_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace neve::resp
