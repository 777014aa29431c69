#include "plan.h"

#include <algorithm>
#include <map>

#include "command.h"

namespace neve {
namespace {

// Least bytes of a run; below this, a second connection gains less than it costs.
constexpr std::size_t kLeastRunBytes = std::size_t{1} << 20;
constexpr std::size_t kCommitIds = 256;  // most ids of one function call: keeps each call short
// Most payload bytes of one commit. Uncommitted values count against no quota, so the platform cuts
// off tenants with many of them (tiering.watch). A commit costs as much as 20 kB of payload.
constexpr std::size_t kCommitBytes = std::size_t{8} << 20;

std::string_view as_text(const BlockId& id) { return command::as_text(id); }

void function_head(std::string& out, std::string_view name, std::size_t keys,
                   std::size_t arguments) {
  command::begin(out, 3 + keys + arguments);
  command::argument(out, std::string_view("FCALL"));
  command::argument(out, name);
  command::argument(out, keys);
}

// Splits operations [0, visible) into runs: by primary, then by bytes over the primary's lanes.
std::vector<Run> spread(const Batch& batch, const TopologyMap& map, std::uint32_t lanes,
                        std::uint32_t first_lane) {
  struct Share {
    std::size_t bytes = 0;
    std::vector<std::uint32_t> operations;
  };
  std::vector<Share> shares(map.primaries.size());
  for (std::uint32_t i = 0; i < batch.visible; ++i) {
    auto& share = shares[map.owner[batch.operations[i].slot]];
    share.bytes += kHeaderBytes + batch.operations[i].payload.size();
    share.operations.push_back(i);
  }
  std::vector<Run> runs;
  for (std::size_t p = 0; p < shares.size(); ++p) {
    const auto& share = shares[p];
    const auto parts = std::clamp<std::size_t>(share.bytes / kLeastRunBytes, 1, lanes);
    std::size_t before = 0;
    std::size_t part = parts;  // none yet
    for (const auto index : share.operations) {
      const auto size = kHeaderBytes + batch.operations[index].payload.size();
      const auto middle = (before + size / 2) * parts / share.bytes;
      before += size;
      if (middle != part) {
        part = middle;
        const auto lane = static_cast<std::uint32_t>(first_lane + part) % lanes;
        runs.push_back({map.primaries[p], lane, {}});
      }
      runs.back().operations.push_back(index);
    }
  }
  return runs;
}

// Groups a run's operations by bucket into slices of at most `most` operations. A slice is closed
// once the sum of `bytes_of` reaches `most_bytes`.
template <typename BucketOf, typename BytesOf>
std::vector<std::pair<std::size_t, std::vector<std::uint32_t>>> by_bucket(
    const std::vector<std::uint32_t>& operations, std::size_t most, BucketOf bucket_of,
    std::size_t most_bytes, BytesOf bytes_of) {
  std::vector<std::pair<std::size_t, std::vector<std::uint32_t>>> slices;
  std::map<std::size_t, std::pair<std::size_t, std::size_t>> open;  // bucket -> slice, its bytes
  for (const auto index : operations) {
    const auto bucket = bucket_of(index);
    const auto at = open.find(bucket);
    if (at == open.end() || slices[at->second.first].second.size() == most ||
        at->second.second >= most_bytes) {
      open[bucket] = {slices.size(), bytes_of(index)};
      slices.push_back({bucket, {index}});
    } else {
      slices[at->second.first].second.push_back(index);
      at->second.second += bytes_of(index);
    }
  }
  return slices;
}

template <typename BucketOf>
auto by_bucket(const std::vector<std::uint32_t>& operations, std::size_t most, BucketOf bucket_of) {
  return by_bucket(operations, most, bucket_of, 1, [](std::uint32_t) { return std::size_t{0}; });
}

std::string block_key(const Bucket& bucket, const BlockId& id) {
  std::string key;
  key.reserve(bucket.block_prefix.size() + id.size());
  key += bucket.block_prefix;
  key += as_text(id);
  return key;
}

std::string commit_command(const Keyspace& keys, const Bucket& bucket, const Batch& batch,
                           const std::vector<std::uint32_t>& puts) {
  std::string out;
  function_head(out, "neve_commit", kBookkeepingKeys + puts.size(), 1 + 3 * puts.size());
  out += bucket.bookkeeping;
  for (const auto put : puts) command::argument(out, std::string_view(batch.operations[put].key));
  command::argument(out, keys.space_id);
  for (const auto put : puts) {
    const auto& operation = batch.operations[put];
    command::argument(out, as_text(operation.id));
    command::argument(out, kHeaderBytes + operation.payload.size());
    command::argument(out, operation.tokens);
  }
  return out;
}

std::string touch_command(const Bucket& bucket, const Batch& batch,
                          const std::vector<std::uint32_t>& gets) {
  std::string out;
  function_head(out, "neve_touch", kBookkeepingKeys, gets.size());
  out += bucket.bookkeeping;
  for (const auto get : gets) command::argument(out, as_text(batch.operations[get].id));
  return out;
}

std::uint32_t add(Batch& batch, Operation&& operation) {
  batch.operations.push_back(std::move(operation));
  return static_cast<std::uint32_t>(batch.operations.size() - 1);
}

}  // namespace

std::size_t Keyspace::bucket_of(const BlockId& id) const {
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    number = number << 8 | std::to_integer<std::uint32_t>(id[i]);
  }
  return number % buckets.size();
}

Plan plan_get(const Keyspace& keys, std::span<const GetRequest> requests, bool touch, Time deadline,
              const TopologyMap& map, std::uint32_t lanes, std::uint32_t first_lane) {
  Plan plan;
  plan.batch = std::make_shared<Batch>(requests.size(), deadline, Urgency::kLoad);
  auto& batch = *plan.batch;
  batch.operations.reserve(requests.size() + lanes * map.primaries.size());
  for (const auto& request : requests) {
    const auto& bucket = keys.buckets[keys.bucket_of(request.id)];
    Operation operation;
    operation.kind = Kind::kGet;
    operation.slot = bucket.slot;
    operation.id = request.id;
    operation.payload = request.payload;
    operation.header_out = request.header_out;
    operation.key = block_key(bucket, request.id);
    plan.bytes += kHeaderBytes + request.payload.size();
    batch.operations.push_back(std::move(operation));
  }
  plan.runs = spread(batch, map, lanes, first_lane);
  if (!touch) return plan;
  for (auto& run : plan.runs) {
    const auto bucket_of = [&](std::uint32_t i) { return keys.bucket_of(batch.operations[i].id); };
    for (const auto& [number, gets] : by_bucket(run.operations, kCallIds, bucket_of)) {
      Operation operation;
      operation.idempotent = true;
      operation.slot = keys.buckets[number].slot;
      operation.command = touch_command(keys.buckets[number], batch, gets);
      run.operations.push_back(add(batch, std::move(operation)));
    }
  }
  return plan;
}

Plan plan_put(const Keyspace& keys, std::span<const PutRequest> requests, Time deadline,
              Urgency urgency, const TopologyMap& map) {
  Plan plan;
  plan.batch = std::make_shared<Batch>(requests.size(), deadline, urgency);
  auto& batch = *plan.batch;
  batch.tag = keys.tag;
  batch.operations.reserve(requests.size() + map.primaries.size());
  for (const auto& request : requests) {
    const auto& bucket = keys.buckets[keys.bucket_of(request.id)];
    Operation operation;
    operation.kind = Kind::kPut;
    operation.slot = bucket.slot;
    operation.id = request.id;
    operation.parent = request.parent;
    operation.tokens = request.tokens;
    operation.payload = request.payload;
    operation.key = block_key(bucket, request.id);
    plan.bytes += kHeaderBytes + request.payload.size();
    batch.operations.push_back(std::move(operation));
  }
  plan.runs = spread(batch, map, 1, 0);
  for (auto& run : plan.runs) {
    const auto bucket_of = [&](std::uint32_t i) { return keys.bucket_of(batch.operations[i].id); };
    const auto bytes_of = [&](std::uint32_t i) { return batch.operations[i].payload.size(); };
    auto slices = by_bucket(run.operations, kCommitIds, bucket_of, kCommitBytes, bytes_of);
    run.operations.clear();
    for (auto& [number, puts] : slices) {
      const auto& bucket = keys.buckets[number];
      const auto group = static_cast<std::uint32_t>(batch.groups.size());
      Operation operation;
      operation.kind = Kind::kCommit;
      operation.slot = bucket.slot;
      operation.group = group;
      operation.command = commit_command(keys, bucket, batch, puts);
      const auto commit = add(batch, std::move(operation));
      for (const auto put : puts) batch.operations[put].group = group;
      run.operations.insert(run.operations.end(), puts.begin(), puts.end());
      run.operations.push_back(commit);
      batch.groups.push_back({commit, std::move(puts), {}});
    }
  }
  return plan;
}

Plan plan_calls(std::vector<CallRequest> requests, Time deadline, const TopologyMap& map,
                std::uint32_t lanes) {
  Plan plan;
  plan.batch = std::make_shared<Batch>(requests.size(), deadline, Urgency::kLoad);
  std::map<std::uint16_t, std::size_t> runs;  // index of a primary -> its run
  for (auto& request : requests) {
    Operation operation;
    operation.slot = request.slot;
    operation.idempotent = request.idempotent;
    operation.command = std::move(request.command);
    const auto owner = map.owner[operation.slot];
    const auto index = add(*plan.batch, std::move(operation));
    const auto [at, is_new] = runs.try_emplace(owner, plan.runs.size());
    if (is_new) plan.runs.push_back({map.primaries[owner], lanes, {}});
    plan.runs[at->second].operations.push_back(index);
  }
  return plan;
}

MatchPlan plan_match(const Keyspace& keys, std::span<const BlockId> ids, Time deadline,
                     const TopologyMap& map, std::uint32_t lanes) {
  std::vector<std::uint32_t> all(ids.size());
  for (std::uint32_t i = 0; i < all.size(); ++i) all[i] = i;
  MatchPlan match;
  match.calls.resize(ids.size());
  match.positions.resize(ids.size());
  std::vector<CallRequest> requests;
  const auto bucket_of = [&](std::uint32_t i) { return keys.bucket_of(ids[i]); };
  for (const auto& [number, slice] : by_bucket(all, kCallIds, bucket_of)) {
    const auto& bucket = keys.buckets[number];
    CallRequest request;
    request.slot = bucket.slot;
    request.idempotent = true;
    function_head(request.command, "neve_locate", kBookkeepingKeys, 1 + slice.size());
    request.command += bucket.bookkeeping;
    command::argument(request.command, std::string_view("0"));  // stop after the first miss
    std::uint32_t position = 0;
    for (const auto i : slice) {
      match.calls[i] = static_cast<std::uint32_t>(requests.size());
      match.positions[i] = position++;
      command::argument(request.command, as_text(ids[i]));
    }
    requests.push_back(std::move(request));
  }
  match.plan = plan_calls(std::move(requests), deadline, map, lanes);
  return match;
}

std::string matched_rows(const Batch& batch, const MatchPlan& plan, Status& status) {
  std::string rows;
  status = Status::kOk;
  for (std::size_t i = 0; i < plan.calls.size(); ++i) {
    const auto& call = batch.operations[plan.calls[i]];
    const auto at = plan.positions[i] * kEntryBytes;
    if (call.status != Status::kOk) {
      status = call.status;
      break;
    }
    if (call.reply.type != resp::Type::kBulk || at + kEntryBytes > call.reply.text.size()) {
      status = Status::kError;  // only ids after a miss may lack an answer
      break;
    }
    rows.append(call.reply.text, at, kEntryBytes);
    if (rows[rows.size() - kEntryBytes] == 0) break;  // the state: neither hot nor cold
  }
  return rows;
}

}  // namespace neve
