// Map from slots to primaries. Snapshots are immutable; `Topology` itself is for any thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "primary.h"
#include "slots.h"

namespace neve {

struct TopologyMap {
  std::vector<std::shared_ptr<Primary>> primaries;  // that serve slots; never empty
  std::array<std::uint16_t, kSlots> owner{};        // index into `primaries`

  const std::shared_ptr<Primary>& primary_of(std::uint16_t slot) const {
    return primaries[owner[slot]];
  }
};

class Topology {
 public:
  // Discards the map; the seeds are then alternative addresses of one server.
  void reset(const std::vector<Endpoint>& seeds, std::shared_ptr<const Access> access);

  std::shared_ptr<const TopologyMap> map() const;
  // Grows with each reset: answers to questions of an older one are stale.
  std::uint64_t generation() const;

  // Adopts a server's map of the cluster. Remaining primaries keep their state; primaries without
  // a slot are retired. False if `generation` is stale.
  bool adopt(const std::vector<SlotRange>& ranges, std::uint64_t generation);
  // Records that `to` owns the slot.
  void move_slot(std::uint16_t slot, const Endpoint& to);
  // Returns the server at `endpoint`; one outside the map is created and remembered.
  std::shared_ptr<Primary> primary_at(const Endpoint& endpoint);
  // Next server for CLUSTER SLOTS: primaries and seeds in turn.
  std::shared_ptr<Primary> next_to_ask();

 private:
  std::shared_ptr<Primary> primary_at_locked(const Endpoint& endpoint);

  mutable std::mutex mutex_;
  std::shared_ptr<const TopologyMap> map_;
  std::shared_ptr<const Access> access_;
  std::shared_ptr<Primary> seeds_;
  std::vector<std::pair<std::string, std::shared_ptr<Primary>>> known_;  // by endpoint name
  std::uint64_t generation_ = 0;
  std::uint32_t made_ = 0;
  std::size_t asked_ = 0;
};

}  // namespace neve
