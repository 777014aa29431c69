// Heads read in pieces are those read at once; an address never breaks out of its request's lines.

#include <algorithm>

#include "http.h"
#include "input.h"

using namespace neve::http;
using neve::fuzzing::alone;
using neve::fuzzing::Input;
using neve::fuzzing::Pieces;

namespace {

struct Read {
  Progress progress = Progress::kNeedMore;
  std::size_t used = 0;
  Head head;

  bool operator==(const Read&) const = default;
};

Read read(std::string_view text) {
  const auto offered = alone(text);
  Read read;
  read.progress = read_head({offered.data(), offered.size()}, read.used, read.head);
  if (read.progress != Progress::kDone) return {read.progress, 0, {}};
  CLAIM(read.used <= text.size() && read.used <= kMaxHeadBytes);
  CLAIM(text.substr(0, read.used).ends_with("\r\n\r\n"));
  CLAIM(read.head.status >= 100 && read.head.status <= 999);
  CLAIM(!(read.head.chunked && read.head.length));
  if (read.head.range) CLAIM(read.head.range->first <= read.head.range->last);
  return read;
}

Read read_in(Pieces pieces) {
  std::string waiting;
  Read last = read(waiting);
  while (!pieces.empty() && last.progress == Progress::kNeedMore) {
    waiting += pieces.next();
    last = read(waiting);
  }
  return last;
}

void ask(std::string_view text) {
  const auto offered = alone(text);
  const auto url = read_url({offered.data(), offered.size()});
  if (!url) return;
  CLAIM(!url->where.host.empty() && url->where.port != 0);
  const auto request = range_request(*url, {1, 2});
  CLAIM(request.starts_with("GET /") && request.ends_with("\r\n\r\n"));
  CLAIM(std::count(request.begin(), request.end(), '\n') == 5);
  CLAIM(std::count(request.begin(), request.end(), ' ') == 5);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const auto seed = input.byte();
  CLAIM(read_in(Pieces(input.rest(), seed)) == read(input.rest()));
  ask(input.rest());
  ask("http://" + std::string(input.rest()));
  return 0;
}
