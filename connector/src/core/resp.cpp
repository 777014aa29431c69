#include "resp.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace neve::resp {

Progress read_line(std::string_view input, Line& line) {
  const auto window = input.substr(0, kMaxLineBytes);
  const auto at = window.find_first_of("\r\n");
  if (at == std::string_view::npos) {
    return input.size() >= kMaxLineBytes ? Progress::kBad : Progress::kNeedMore;
  }
  if (at == 0 || input[at] == '\n') return Progress::kBad;
  if (at + 1 == input.size()) return Progress::kNeedMore;
  if (input[at + 1] != '\n') return Progress::kBad;
  line.kind = input[0];
  line.text = input.substr(1, at - 1);
  line.bytes = at + 2;
  return Progress::kDone;
}

bool read_integer(std::string_view text, std::int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

Progress Parser::feed(std::string_view input, std::size_t& used) {
  used = 0;
  while (true) {
    if (in_bulk_) {
      const auto count = std::min(bulk_left_, input.size() - used);
      bulk_.text.append(input.substr(used, count));
      used += count;
      bulk_left_ -= count;
      if (bulk_left_ > 0 || input.size() - used < 2) return Progress::kNeedMore;
      if (input.substr(used, 2) != "\r\n") return Progress::kBad;
      used += 2;
      in_bulk_ = false;
      if (const auto progress = end_value(std::exchange(bulk_, {}));
          progress != Progress::kNeedMore)
        return progress;
      continue;
    }
    Line line;
    if (const auto progress = read_line(input.substr(used), line); progress != Progress::kDone)
      return progress;
    used += line.bytes;
    if (const auto progress = begin_value(line); progress != Progress::kNeedMore) return progress;
  }
}

Reply Parser::take() { return std::exchange(done_, {}); }

Progress Parser::begin_value(const Line& line) {
  if (++items_ > kMaxItems) return Progress::kBad;
  bytes_ += line.text.size();
  if (bytes_ > kMaxBulkBytes) return Progress::kBad;
  Reply value;
  switch (line.kind) {
    case '+':
    case ',':
    case '(':
      value.type = Type::kText;
      value.text = line.text;
      return end_value(std::move(value));
    case '-':
      value.type = Type::kError;
      value.text = line.text;
      return end_value(std::move(value));
    case ':':
      value.type = Type::kInteger;
      if (!read_integer(line.text, value.integer)) return Progress::kBad;
      return end_value(std::move(value));
    case '#':
      if (line.text != "t" && line.text != "f") return Progress::kBad;
      value.type = Type::kBoolean;
      value.integer = line.text == "t";
      return end_value(std::move(value));
    case '_':
      if (!line.text.empty()) return Progress::kBad;
      return end_value(std::move(value));
    case '$':
    case '=':
      return begin_bulk(Type::kBulk, line.text);
    case '!':
      return begin_bulk(Type::kError, line.text);
    case '*':
    case '~':
      return begin_items(Type::kArray, line.text, 1);
    case '%':
      return begin_items(Type::kArray, line.text, 2);
    case '>':
      return begin_items(Type::kPush, line.text, 1);
    case '|':
      return begin_items(Type::kAttribute, line.text, 2);
    default:
      return Progress::kBad;
  }
}

Progress Parser::begin_bulk(Type type, std::string_view length) {
  std::int64_t size = 0;
  if (!read_integer(length, size)) return Progress::kBad;
  if (size == -1 && type == Type::kBulk) return end_value({});
  if (size < 0 || static_cast<std::uint64_t>(size) > kMaxBulkBytes) return Progress::kBad;
  bytes_ += static_cast<std::size_t>(size);
  if (bytes_ > kMaxBulkBytes) return Progress::kBad;
  bulk_ = Reply{.type = type, .integer = 0, .text = {}, .items = {}};
  bulk_left_ = static_cast<std::size_t>(size);
  in_bulk_ = true;
  return Progress::kNeedMore;
}

Progress Parser::begin_items(Type type, std::string_view count, std::size_t factor) {
  std::int64_t announced = 0;
  if (!read_integer(count, announced)) return Progress::kBad;
  if (announced == -1 && type == Type::kArray && factor == 1) return end_value({});
  if (announced < 0 || static_cast<std::uint64_t>(announced) > kMaxItems) return Progress::kBad;
  // Pushes come between replies; inside a reply they are invalid.
  if (type == Type::kPush && !frames_.empty()) return Progress::kBad;
  Frame frame;
  frame.reply.type = type;
  frame.left = static_cast<std::size_t>(announced) * factor;
  if (frame.left == 0) return end_value(std::move(frame.reply));
  if (frames_.size() == kMaxDepth) return Progress::kBad;
  // Do not trust the announced count: memory grows with received items.
  frame.reply.items.reserve(std::min<std::size_t>(frame.left, 1024));
  frames_.push_back(std::move(frame));
  return Progress::kNeedMore;
}

Progress Parser::end_value(Reply&& value) {
  while (!frames_.empty()) {
    if (value.type == Type::kAttribute) return Progress::kNeedMore;  // discard; the value follows
    auto& frame = frames_.back();
    frame.reply.items.push_back(std::move(value));
    if (--frame.left > 0) return Progress::kNeedMore;
    value = std::move(frame.reply);
    frames_.pop_back();
  }
  items_ = bytes_ = 0;
  done_ = std::move(value);
  return Progress::kDone;
}

}  // namespace neve::resp
