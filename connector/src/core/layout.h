// Written by connector/generate_layout.py; change neve.index.entry instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace neve {

// The header of a block: where its fields are.
inline constexpr std::size_t kHeaderBytes = 64;
inline constexpr std::size_t kMaxPayloadBytes = 67108864;
inline constexpr std::size_t kMagicAt = 0;
inline constexpr std::size_t kVersionAt = 4;
inline constexpr std::size_t kKindAt = 5;
inline constexpr std::size_t kChecksumKindAt = 6;
inline constexpr std::size_t kCodecAt = 7;
inline constexpr std::size_t kIdAt = 8;
inline constexpr std::size_t kParentAt = 24;
inline constexpr std::size_t kTokensAt = 40;
inline constexpr std::size_t kPayloadBytesAt = 44;
inline constexpr std::size_t kPayloadChecksumAt = 48;
inline constexpr std::size_t kSpaceTagAt = 56;
inline constexpr std::size_t kHeaderChecksumAt = 60;

// An entry of the index, whose first byte is its state: 0 is a miss.
inline constexpr std::size_t kEntryBytes = 53;

// Calls of the functions: KEYS before those of blocks, and the most ids.
inline constexpr std::size_t kBookkeepingKeys = 7;
inline constexpr std::size_t kCallIds = 1000;

// What neve_commit answers for each block.
inline constexpr std::int64_t kStored = 0;
inline constexpr std::int64_t kPresent = 1;
inline constexpr std::int64_t kRefused = 2;
inline constexpr std::int64_t kMismatch = 3;
inline constexpr std::int64_t kVanished = 4;

// A value whose commit never comes expires after so many milliseconds.
inline constexpr std::string_view kUncommittedMs = "60000";

}  // namespace neve
