#include "local_read.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

#include "checksum.h"
#include "descriptor.h"

namespace neve {
namespace {

// In the cache of a core (L2) until it is checksummed and copied. Measured: docs/benchmarks.md.
constexpr std::size_t kPieceBytes = std::size_t{256} << 10;

}  // namespace

LocalRead::LocalRead(const SpaceTag& tag, std::vector<LocalBlock> blocks)
    : tag_(tag),
      blocks_(std::move(blocks)),
      left_(blocks_.size()),
      statuses_(blocks_.size(), Status::kTimeout) {}

bool LocalRead::run(Time deadline) {
  thread_local std::vector<std::byte> buffer(kPieceBytes);
  while (true) {
    const auto i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= blocks_.size()) return false;
    const auto status = read(blocks_[i], buffer, deadline);
    const std::shared_lock lock(mutex_);
    if (ended_ || status == Status::kTimeout) return false;
    statuses_[i] = status;
    if (left_.fetch_sub(1, std::memory_order_relaxed) == 1) return true;
  }
}

void LocalRead::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
}

std::vector<Status> LocalRead::statuses() const {
  const std::lock_guard lock(mutex_);
  return statuses_;
}

std::string LocalRead::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

Status LocalRead::read(const LocalBlock& block, std::span<std::byte> buffer, Time deadline) {
  const Descriptor file(::open(block.path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.is_open()) return errno == ENOENT ? Status::kEvicted : fail(block, errno);
  Checksum sum;
  std::optional<BlockHeader> header;
  std::size_t filled = 0;
  while (true) {
    if (Clock::now() >= deadline) return Status::kTimeout;
    const auto count = ::read(file.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail(block, errno);
    if (count == 0) break;
    auto piece = buffer.first(static_cast<std::size_t>(count));
    if (!header) {
      if (piece.size() < kHeaderBytes) return Status::kCorrupt;
      header = decode_header(ConstRawHeader(piece.data(), kHeaderBytes));
      if (!header || header->codec != Codec::kPlain || header->id != block.id ||
          header->tag != tag_ || header->payload_bytes != block.payload.size()) {
        return Status::kCorrupt;
      }
      piece = piece.subspan(kHeaderBytes);
    }
    if (piece.size() > block.payload.size() - filled) return Status::kCorrupt;
    sum.update(piece);
    const std::shared_lock lock(mutex_);
    if (ended_) return Status::kTimeout;
    std::memcpy(block.payload.data() + filled, piece.data(), piece.size());
    filled += piece.size();
  }
  const bool is_whole = header && filled == block.payload.size();
  return is_whole && sum.digest() == header->payload_checksum ? Status::kOk : Status::kCorrupt;
}

Status LocalRead::fail(const LocalBlock& block, int error) {
  const std::lock_guard lock(mutex_);
  if (trouble_.empty()) trouble_ = block.path + ": " + std::generic_category().message(error);
  return Status::kUnavailable;
}

}  // namespace neve
