// Builds batches: the operations of loads, stores and look-ups in one tenant's keys. Pure.
//
// The functions' arguments are specified in connector/src/neve/index/functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "batch.h"
#include "layout.h"
#include "topology.h"

namespace neve {

// A slice of a tenant's block ids in one hash slot.
struct Bucket {
  std::string block_prefix;  // a block's key is this prefix and its id
  std::string bookkeeping;   // KEYS[1..7] of every function, encoded
  std::uint16_t slot = 0;
};

struct Keyspace {
  std::uint32_t space_id = 0;
  SpaceTag tag{};
  std::vector<Bucket> buckets;  // never empty

  std::size_t bucket_of(const BlockId& id) const;
};

struct GetRequest {
  BlockId id{};
  Payload payload;
  std::byte* header_out = nullptr;  // 64 bytes, or null
};

struct PutRequest {
  BlockId id{};
  BlockId parent{};
  std::uint32_t tokens = 0;
  Payload payload;  // only read
};

struct CallRequest {
  std::string command;  // encoded
  std::uint16_t slot = 0;
  bool idempotent = false;
};

// Operations of a batch for one connection, in the order of sending.
struct Run {
  std::shared_ptr<Primary> primary;
  std::uint32_t lane = 0;
  std::vector<std::uint32_t> operations;
};

struct Plan {
  std::shared_ptr<Batch> batch;
  std::vector<Run> runs;
  std::size_t bytes = 0;
};

// `first_lane` rotates from batch to batch, so that small batches use all lanes.
Plan plan_get(const Keyspace& keys, std::span<const GetRequest> requests, bool touch, Time deadline,
              const TopologyMap& map, std::uint32_t lanes, std::uint32_t first_lane);

// All puts of a primary share one lane: a second lane costs client and server a quarter more CPU
// time and no throughput is gained (docs/decisions/004-sockets.md).
Plan plan_put(const Keyspace& keys, std::span<const PutRequest> requests, Time deadline,
              Urgency urgency, const TopologyMap& map);

// Calls use a lane of their own, so that they do not wait behind block bytes.
Plan plan_calls(std::vector<CallRequest> requests, Time deadline, const TopologyMap& map,
                std::uint32_t lanes);

// A look-up of a chain: one function call per bucket, all in parallel.
struct MatchPlan {
  Plan plan;
  std::vector<std::uint32_t> calls;      // per id: index of the operation that answers it
  std::vector<std::uint32_t> positions;  // per id: position in that operation's reply
};

MatchPlan plan_match(const Keyspace& keys, std::span<const BlockId> ids, Time deadline,
                     const TopologyMap& map, std::uint32_t lanes);

// Returns the index entries of the longest found prefix and of the first missing id, concatenated.
// `status`: kOk, or why the next id's entry is unknown.
std::string matched_rows(const Batch& batch, const MatchPlan& plan, Status& status);

}  // namespace neve
