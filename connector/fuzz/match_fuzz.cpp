// Rows of neve_locate: whatever the servers answer, what is reported is a prefix that was found,
// cut out of the right replies, and at most one miss behind it.

#include "input.h"
#include "plan.h"

using namespace neve;

namespace {

Keyspace keys_of(std::size_t buckets) {
  Keyspace keys;
  for (std::size_t i = 0; i < buckets; ++i) {
    Bucket bucket;
    bucket.block_prefix = "{t7." + std::to_string(i) + "}:b:1:";
    bucket.slot = slot_of(bucket.block_prefix);
    keys.buckets.push_back(bucket);
  }
  return keys;
}

std::shared_ptr<TopologyMap> one_primary() {
  auto map = std::make_shared<TopologyMap>();
  map->primaries.push_back(std::make_shared<Primary>(std::vector{Endpoint{"10.0.0.1", 7000}},
                                                     std::make_shared<const Access>(), 0));
  return map;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzzing::Input input(data, size);
  const auto keys = keys_of(1 + input.byte() % 5);
  std::vector<BlockId> ids(input.byte());
  for (auto& id : ids) id[3] = std::byte(input.byte());  // what its bucket follows from
  static const auto map = one_primary();
  const auto plan = plan_match(keys, ids, kNever, *map, 4);
  auto& batch = *plan.plan.batch;
  for (auto& call : batch.operations) {
    call.status = input.byte() % 8 == 7 ? Status::kTimeout : Status::kOk;
    call.reply.type = input.byte() % 8 == 7 ? resp::Type::kArray : resp::Type::kBulk;
    std::string rows;
    const std::size_t bytes = input.byte() * 3U;
    while (rows.size() < bytes) rows += static_cast<char>(input.byte());
    call.reply.text.assign(rows.begin(), rows.end());
    call.reply.text.shrink_to_fit();
  }
  Status status = Status::kPending;
  const auto rows = matched_rows(batch, plan, status);
  CLAIM(rows.size() % kEntryBytes == 0);
  const auto count = rows.size() / kEntryBytes;
  CLAIM(count <= ids.size());
  std::vector<std::size_t> seen(keys.buckets.size());  // rows of each bucket so far
  for (std::size_t i = 0; i < count; ++i) {
    const auto& call = batch.operations[plan.calls[i]];
    CLAIM(call.status == Status::kOk);
    const auto at = seen[keys.bucket_of(ids[i])]++ * kEntryBytes;
    CLAIM(rows.substr(i * kEntryBytes, kEntryBytes) == call.reply.text.substr(at, kEntryBytes));
    CLAIM((rows[i * kEntryBytes] != 0) || i + 1 == count);
  }
  const bool ends_in_miss = count > 0 && rows[(count - 1) * kEntryBytes] == 0;
  if (count < ids.size()) CLAIM(ends_in_miss || status != Status::kOk);
  if (ends_in_miss || count == ids.size()) CLAIM(status == Status::kOk);
  return 0;
}
