// CLUSTER SLOTS, error replies, endpoints and slots of keys: whatever a server says, the map that
// follows names a primary for every slot, and redirects lead somewhere.

#include <string>

#include "input.h"
#include "slots.h"
#include "topology.h"

using namespace neve;

namespace {

const Endpoint kAsked{"10.0.0.1", 7000};

// A second opinion: bit by bit, and the tag found by hand.
unsigned slot_by_hand(std::string_view key) {
  for (std::size_t open = 0; open < key.size(); ++open) {
    if (key[open] != '{') continue;
    for (std::size_t close = open + 1; close < key.size(); ++close) {
      if (key[close] != '}') continue;
      if (close > open + 1) key = {key.data() + open + 1, close - open - 1};
      break;
    }
    break;
  }
  unsigned crc = 0;
  for (const char c : key) {
    crc ^= static_cast<unsigned>(static_cast<unsigned char>(c)) << 8;
    for (int bit = 0; bit < 8; ++bit) crc = ((crc << 1) ^ (crc & 0x8000 ? 0x1021 : 0)) & 0xFFFF;
  }
  return crc % kSlots;
}

void check_topology(const std::vector<SlotRange>& ranges) {
  for (const auto& range : ranges) {
    CLAIM(range.first <= range.last && range.last < kSlots);
    CLAIM(range.primary.port > 0 && !range.primary.host.empty());
  }
  Topology topology;
  topology.reset({kAsked}, std::make_shared<const Access>());
  CLAIM(!topology.adopt(ranges, topology.generation() + 1));
  CLAIM(topology.adopt(ranges, topology.generation()));
  const auto map = topology.map();
  CLAIM(!map->primaries.empty());
  for (const auto owner : map->owner) CLAIM(owner < map->primaries.size());
  for (const auto& primary : map->primaries) CLAIM(!primary->retired);
  const auto& last = ranges.back();  // nobody came after it
  CLAIM(map->primary_of(last.first)->resolvers.front().endpoint().name() == last.primary.name());
}

void check_error(std::string_view text) {
  const auto error = read_error(text, kAsked);
  if (error.kind != ErrorKind::kMoved && error.kind != ErrorKind::kAsk) return;
  CLAIM(error.slot < kSlots && error.to.port > 0 && !error.to.host.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto copy = fuzzing::alone(fuzzing::Input(data, size).rest());
  const std::string_view text(copy.data(), copy.size());
  CLAIM(slot_of(text) == slot_by_hand(text));
  check_error(text);
  if (const auto endpoint = read_endpoint(text)) {
    CLAIM(!endpoint->host.empty());
    CLAIM(endpoint->is_unix() == text.starts_with("unix:"));
  }
  resp::Parser parser;
  std::size_t used = 0;
  if (parser.feed(text, used) != resp::Progress::kDone) return 0;
  const auto reply = parser.take();
  if (reply.type == resp::Type::kError) check_error(reply.text);
  if (const auto ranges = read_slots(reply, kAsked)) check_topology(*ranges);
  return 0;
}
