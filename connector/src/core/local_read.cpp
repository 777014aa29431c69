#include "local_read.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
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

// In the cache of a core (L2) until it is checksummed. Measured: docs/benchmarks.md.
constexpr std::size_t kPieceBytes = std::size_t{256} << 10;

// How the next bytes of a file come into the caller's memory.
enum class Way : std::uint8_t {
  kNoWait,  // at once, as far as they are in the page cache; the rest through the thread's buffer
  kMemory,  // at once: the file stands in memory
  kBuffer,  // through the thread's buffer
};

constexpr std::size_t kRuns = 64;  // of a payload, that one call of the system fills

// Bytes that were read, or the negated errno.
std::int64_t read_all(int file, std::span<const iovec> into, int flags) {
  const auto count = ::preadv2(file, into.data(), static_cast<int>(into.size()), -1, flags);
  return count < 0 ? -errno : count;
}

bool is_memory(int file) {
  struct statfs found{};
  return ::fstatfs(file, &found) == 0 &&
         (found.f_type == TMPFS_MAGIC || found.f_type == RAMFS_MAGIC);
}

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
    if (ended_.load() || status == Status::kTimeout) return false;
    statuses_[i] = status;
    if (left_.fetch_sub(1, std::memory_order_relaxed) == 1) return true;
  }
}

void LocalRead::end() {
  ended_.store(true);  // before the lock, which readers would else keep from us
  const std::lock_guard lock(mutex_);
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
  std::array<std::byte, kHeaderBytes> raw{};
  std::optional<BlockHeader> header;
  Checksum sum;
  std::size_t filled = 0;
  auto way = Way::kNoWait;
  while (!header || filled < block.payload.size()) {
    if (Clock::now() >= deadline) return Status::kTimeout;
    const std::span<std::byte> head(raw.data(), header ? 0 : raw.size());
    std::array<iovec, kRuns + 1> into{iovec{head.data(), head.size()}};
    std::size_t runs = 0;
    const auto piece =
        block.payload.vectors(filled, buffer.size(), std::span(into).subspan(1), runs);
    std::int64_t count = -EAGAIN;
    if (way != Way::kBuffer) {
      const std::shared_lock lock(mutex_);
      if (ended_.load()) return Status::kTimeout;
      count = read_all(file.get(), std::span(into).first(1 + runs),
                       way == Way::kNoWait ? RWF_NOWAIT : 0);
    }
    if (count == -EOPNOTSUPP || count == -EINVAL || count == -ENOSYS) {
      way = is_memory(file.get()) ? Way::kMemory : Way::kBuffer;
      continue;
    }
    if (count == -EAGAIN) {
      const std::array through{into[0], iovec{buffer.data(), piece}};
      count = read_all(file.get(), through, 0);
      const std::shared_lock lock(mutex_);
      if (ended_.load()) return Status::kTimeout;
      if (count > std::ssize(head)) {
        block.payload.write(filled, buffer.first(static_cast<std::size_t>(count) - head.size()));
      }
    }
    if (count == -EINTR) continue;
    if (count < 0) return fail(block, static_cast<int>(-count));
    if (count == 0 || count < std::ssize(head)) return Status::kCorrupt;
    if (!header) {
      header = decode_header(raw);
      if (!header || header->codec != Codec::kPlain || header->id != block.id ||
          header->tag != tag_ || header->payload_bytes != block.payload.size()) {
        return Status::kCorrupt;
      }
    }
    const auto read_bytes = static_cast<std::size_t>(count) - head.size();
    block.payload.add_to(sum, filled, read_bytes);
    filled += read_bytes;
    moved_bytes_.fetch_add(static_cast<std::uint64_t>(count), std::memory_order_relaxed);
  }
  if (sum.digest() != header->payload_checksum) return Status::kCorrupt;
  return ::read(file.get(), buffer.data(), 1) == 0 ? Status::kOk : Status::kCorrupt;
}

Status LocalRead::fail(const LocalBlock& block, int error) {
  const std::lock_guard lock(mutex_);
  if (trouble_.empty()) trouble_ = block.path + ": " + std::generic_category().message(error);
  return Status::kUnavailable;
}

}  // namespace neve
