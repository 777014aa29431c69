#include "codec.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "third_party/zstd.h"

namespace neve {
namespace {

// Of one byte plane of a piece: zstd's largest block, so that each plane has statistics of its own
// and one without any is stored as it is. Source: RFC 8878, section 3.1.1.2.
constexpr std::size_t kPlaneBytes = std::size_t{128} << 10;
constexpr std::size_t kLengthBytes = 4;  // before each piece: bytes of its zstd frame

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// A thread's contexts and room for the planes of one piece: 0.5 to 2 MiB, kept while it lives.
ZSTD_CCtx* compressor() {
  thread_local const std::unique_ptr<ZSTD_CCtx, FreeContext> context(ZSTD_createCCtx());
  if (!context) throw std::bad_alloc();
  return context.get();
}

ZSTD_DCtx* decompressor() {
  thread_local const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  if (!context) throw std::bad_alloc();
  return context.get();
}

std::span<std::byte> planes_of(std::size_t size) {
  thread_local std::vector<std::byte> room;
  if (room.size() < size) room.resize(size);
  return std::span(room).first(size);
}

constexpr bool is_width(unsigned width) {
  return width == 1 || width == 2 || width == 4 || width == 8;
}

// Byte `b` of every number goes to plane `b`; bytes behind the last whole number stay at the end.
template <unsigned Width>
void split(const std::byte* __restrict raw, std::byte* __restrict planes, std::size_t size) {
  const std::size_t count = size / Width;
  for (unsigned b = 0; b < Width; ++b) {
    std::byte* __restrict plane = planes + b * count;
    for (std::size_t i = 0; i < count; ++i) plane[i] = raw[i * Width + b];
  }
  std::memcpy(planes + count * Width, raw + count * Width, size % Width);
}

template <unsigned Width>
void join(const std::byte* __restrict planes, std::byte* __restrict raw, std::size_t size) {
  const std::size_t count = size / Width;
  for (std::size_t i = 0; i < count; ++i) {
    for (unsigned b = 0; b < Width; ++b) raw[i * Width + b] = planes[b * count + i];
  }
  std::memcpy(raw + count * Width, planes + count * Width, size % Width);
}

void split(unsigned width, const std::byte* raw, std::span<std::byte> planes) {
  if (width == 2) return split<2>(raw, planes.data(), planes.size());
  if (width == 4) return split<4>(raw, planes.data(), planes.size());
  split<8>(raw, planes.data(), planes.size());
}

void join(unsigned width, std::span<const std::byte> planes, std::byte* raw) {
  if (width == 2) return join<2>(planes.data(), raw, planes.size());
  if (width == 4) return join<4>(planes.data(), raw, planes.size());
  join<8>(planes.data(), raw, planes.size());
}

}  // namespace

std::optional<std::size_t> shuffle_zstd_encode(std::span<const std::byte> raw, unsigned width,
                                               int level, std::span<std::byte> out) {
  if (!is_width(width) || out.empty()) return std::nullopt;
  out[0] = static_cast<std::byte>(width);
  std::size_t used = 1;
  while (!raw.empty()) {
    const auto piece = raw.first(std::min(raw.size(), kPlaneBytes * width));
    raw = raw.subspan(piece.size());
    auto planes = piece;
    if (width > 1) {
      const auto room = planes_of(piece.size());
      split(width, piece.data(), room);
      planes = room;
    }
    if (out.size() - used <= kLengthBytes) return std::nullopt;
    const auto rest = out.subspan(used + kLengthBytes);
    const std::size_t size = ZSTD_compressCCtx(compressor(), rest.data(), rest.size(),
                                               planes.data(), planes.size(), level);
    if (ZSTD_isError(size) != 0) return std::nullopt;  // it does not fit
    const auto length = static_cast<std::uint32_t>(size);
    std::memcpy(out.data() + used, &length, sizeof length);
    used += kLengthBytes + size;
  }
  return used;
}

bool shuffle_zstd_decode(std::span<const std::byte> encoded, std::span<std::byte> raw) {
  if (encoded.empty()) return false;
  const auto width = std::to_integer<unsigned>(encoded[0]);
  if (!is_width(width)) return false;
  encoded = encoded.subspan(1);
  while (!raw.empty()) {
    const auto piece = raw.first(std::min(raw.size(), kPlaneBytes * width));
    raw = raw.subspan(piece.size());
    std::uint32_t length = 0;
    if (encoded.size() < kLengthBytes) return false;
    std::memcpy(&length, encoded.data(), sizeof length);
    encoded = encoded.subspan(kLengthBytes);
    if (length > encoded.size()) return false;
    const auto planes = width == 1 ? piece : planes_of(piece.size());
    const std::size_t size =
        ZSTD_decompressDCtx(decompressor(), planes.data(), planes.size(), encoded.data(), length);
    if (size != piece.size()) return false;  // also if it is an error
    if (width > 1) join(width, planes, piece.data());
    encoded = encoded.subspan(length);
  }
  return encoded.empty();
}

}  // namespace neve
