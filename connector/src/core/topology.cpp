#include "topology.h"

#include <algorithm>

namespace neve {

void Topology::reset(const std::vector<Endpoint>& seeds, std::shared_ptr<const Access> access) {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, primary] : known_)
    primary->retired.store(true, std::memory_order_relaxed);
  if (seeds_) seeds_->retired.store(true, std::memory_order_relaxed);
  known_.clear();
  access_ = std::move(access);
  seeds_ = std::make_shared<Primary>(seeds, access_, made_++);
  auto map = std::make_shared<TopologyMap>();
  map->primaries = {seeds_};
  map_ = std::move(map);
  ++generation_;
}

std::shared_ptr<const TopologyMap> Topology::map() const {
  const std::lock_guard lock(mutex_);
  return map_;
}

std::uint64_t Topology::generation() const {
  const std::lock_guard lock(mutex_);
  return generation_;
}

bool Topology::adopt(const std::vector<SlotRange>& ranges, std::uint64_t generation) {
  const std::lock_guard lock(mutex_);
  if (generation != generation_) return false;
  auto map = std::make_shared<TopologyMap>();
  // A slot without an owner stays with the first primary, which answers CLUSTERDOWN.
  for (const auto& range : ranges) {
    auto primary = primary_at_locked(range.primary);
    auto at = std::find(map->primaries.begin(), map->primaries.end(), primary);
    if (at == map->primaries.end()) at = map->primaries.insert(at, std::move(primary));
    const auto index = static_cast<std::uint16_t>(at - map->primaries.begin());
    std::fill(map->owner.begin() + range.first, map->owner.begin() + range.last + 1, index);
  }
  seeds_->retired.store(true, std::memory_order_relaxed);  // from now on only for CLUSTER SLOTS
  std::erase_if(known_, [&](const auto& item) {
    const auto& serving = map->primaries;
    if (std::find(serving.begin(), serving.end(), item.second) != serving.end()) return false;
    item.second->retired.store(true, std::memory_order_relaxed);
    return true;
  });
  map_ = std::move(map);
  return true;
}

void Topology::move_slot(std::uint16_t slot, const Endpoint& to) {
  const std::lock_guard lock(mutex_);
  auto primary = primary_at_locked(to);
  if (map_->primary_of(slot) == primary) return;
  auto map = std::make_shared<TopologyMap>(*map_);
  auto at = std::find(map->primaries.begin(), map->primaries.end(), primary);
  if (at == map->primaries.end()) at = map->primaries.insert(at, std::move(primary));
  map->owner[slot] = static_cast<std::uint16_t>(at - map->primaries.begin());
  map_ = std::move(map);
}

std::shared_ptr<Primary> Topology::primary_at(const Endpoint& endpoint) {
  const std::lock_guard lock(mutex_);
  return primary_at_locked(endpoint);
}

std::shared_ptr<Primary> Topology::primary_at_locked(const Endpoint& endpoint) {
  const auto name = endpoint.name();
  for (const auto& [known, primary] : known_) {
    if (known == name) return primary;
  }
  auto primary = std::make_shared<Primary>(std::vector{endpoint}, access_, made_++);
  known_.emplace_back(name, primary);
  return primary;
}

std::shared_ptr<Primary> Topology::next_to_ask() {
  const std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  const auto count = map_->primaries.size();
  for (std::size_t tried = 0; tried < count; ++tried) {
    const auto& primary = map_->primaries[asked_++ % count];
    if (!primary->breaker.is_open(now)) return primary;
  }
  return seeds_;
}

}  // namespace neve
