// Reads blocks out of files of the node's local tier (docs/formats/local-tier.md) into the caller's
// memory, and verifies them.
//
// A read of a file cannot be interrupted: a disk that hangs keeps its thread. So only bytes that
// are in memory already (a RAM disk, the page cache) are read into the caller's memory at once;
// others pass through a buffer of the thread, and `end` fences the caller's memory off.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "block.h"
#include "clock.h"
#include "payload.h"
#include "status.h"

namespace neve {

// A block's file: its header and payload as they stand in Valkey, and nothing behind them.
struct LocalBlock {
  std::string path;
  BlockId id{};
  Payload payload;
};

class LocalRead {
 public:
  LocalRead(const SpaceTag& tag, std::vector<LocalBlock> blocks);

  // Reads block after block, in the calling thread, until `deadline` or `end`. Threads that call it
  // at the same time share the blocks. True for the thread that ended the last block.
  bool run(Time deadline);

  // After it returns, `run` writes to no payload any more. From any thread, any number of times.
  void end();

  // Of blocks: kOk (verified), kEvicted (no such file), kCorrupt (torn, or another block),
  // kUnavailable (the file cannot be read), kTimeout (not read by the deadline, or by `end`).
  std::vector<Status> statuses() const;

  // Read so far, of all files. Relaxed: only compared with what it was.
  std::uint64_t moved_bytes() const { return moved_bytes_.load(std::memory_order_relaxed); }

  // The first failure of the file system in words, or empty.
  std::string trouble() const;

 private:
  Status read(const LocalBlock& block, std::span<std::byte> buffer, Time deadline);
  Status fail(const LocalBlock& block, int error);

  const SpaceTag tag_;
  const std::vector<LocalBlock> blocks_;
  std::atomic<std::size_t> next_{0};  // block that nobody reads yet; only taken, so relaxed
  std::atomic<std::size_t> left_;     // blocks that are not read; only counted, so relaxed
  std::atomic<std::uint64_t> moved_bytes_{0};
  std::atomic<bool> ended_{false};
  // Held exclusively, it guards `trouble_`. Shared, while not `ended_`: one's own block may be
  // written.
  mutable std::shared_mutex mutex_;
  std::vector<Status> statuses_;
  std::string trouble_;
};

}  // namespace neve
