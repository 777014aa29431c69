// A payload in many short runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "payload.h"

namespace neve::testing {

// `memory` as runs of `size` bytes.
inline Payload in_runs(std::span<std::byte> memory, std::size_t size) {
  Payload payload;
  while (!memory.empty()) {
    const auto run = memory.first(std::min(size, memory.size()));
    payload.add(run);
    memory = memory.subspan(run.size());
  }
  return payload;
}

}  // namespace neve::testing
