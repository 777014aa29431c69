// A block's payload in the caller's memory: one run of bytes, or several in order. Immutable; the
// memory is the caller's.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "checksum.h"

namespace neve {

class Payload {
 public:
  Payload() = default;

  // One run. Memory that is const must only be read.
  template <typename Bytes>
    requires(!std::same_as<std::remove_cvref_t<Bytes>, Payload> &&
             std::constructible_from<std::span<const std::byte>, Bytes>)
  // NOLINTNEXTLINE(google-explicit-constructor,misc-explicit-constructor): a payload is bytes
  Payload(Bytes&& run) {
    add(std::span<const std::byte>(run));
  }

  void add(std::span<const std::byte> run) {
    if (!run.empty()) {
      runs_.push_back({const_cast<std::byte*>(run.data()), size() + run.size()});
    }
  }

  std::size_t size() const { return runs_.empty() ? 0 : runs_.back().end; }
  bool empty() const { return runs_.empty(); }
  bool is_whole() const { return runs_.size() <= 1; }
  // Of a whole one.
  std::span<std::byte> whole() const {
    return runs_.empty() ? std::span<std::byte>() : std::span(runs_.front().data, size());
  }

  // Calls `visit` with the runs of the bytes [at, at + count), which must lie within.
  template <typename Visit>
  void visit(std::size_t at, std::size_t count, Visit visit) const {
    for (auto run = run_of(at); count > 0; ++run) {
      const auto length = std::min(count, run->end - at);
      visit(std::span(run->data + (length_of(run) - (run->end - at)), length));
      at += length;
      count -= length;
    }
  }

  // Fills `out` with vectors of the bytes from `at` on, at most `most`. Returns the bytes in them;
  // `filled`: how many vectors.
  std::size_t vectors(std::size_t at, std::size_t most, std::span<iovec> out,
                      std::size_t& filled) const {
    const auto begin = at;
    filled = 0;
    most = std::min(most, size() - at);
    for (auto run = run_of(at); most > 0 && filled < out.size(); ++run) {
      const auto length = std::min(most, run->end - at);
      out[filled++] = {run->data + (length_of(run) - (run->end - at)), length};
      at += length;
      most -= length;
    }
    return at - begin;
  }

  // Adds the bytes [at, at + count) to `sum`.
  void add_to(Checksum& sum, std::size_t at, std::size_t count) const {
    visit(at, count, [&](std::span<const std::byte> run) { sum.update(run); });
  }

  // XXH3-64 of all of it.
  std::uint64_t checksum() const {
    if (is_whole()) return neve::checksum(whole());
    Checksum sum;
    add_to(sum, 0, size());
    return sum.digest();
  }

  // Writes `from` to the bytes from `at` on, which must have room for it.
  void write(std::size_t at, std::span<const std::byte> from) const {
    visit(at, from.size(), [&](std::span<std::byte> run) {
      std::memcpy(run.data(), from.data(), run.size());
      from = from.subspan(run.size());
    });
  }

 private:
  struct Run {
    std::byte* data;
    std::size_t end;  // of the bytes of all runs up to this one
  };
  using Iterator = std::vector<Run>::const_iterator;

  // The run that has the byte `at`.
  Iterator run_of(std::size_t at) const {
    return std::upper_bound(runs_.begin(), runs_.end(), at,
                            [](std::size_t value, const Run& run) { return value < run.end; });
  }

  std::size_t length_of(Iterator run) const {
    return run->end - (run == runs_.begin() ? 0 : std::prev(run)->end);
  }

  std::vector<Run> runs_;
};

}  // namespace neve
