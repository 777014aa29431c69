// Formats and planning: tests without a server.

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>

#include "block.h"
#include "breaker.h"
#include "check.h"
#include "checksum.h"
#include "codec.h"
#include "local_read.h"
#include "outbox.h"
#include "plan.h"
#include "quantize.h"
#include "quantize_kernel.h"
#include "runs.h"
#include "slots.h"
#include "window.h"

using namespace neve;
using namespace neve::testing;
using namespace std::chrono_literals;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::shared_ptr<TopologyMap> map_of(std::size_t primaries) {
  const auto access = std::make_shared<const Access>();
  auto map = std::make_shared<TopologyMap>();
  for (std::uint32_t i = 0; i < primaries; ++i) {
    map->primaries.push_back(std::make_shared<Primary>(
        std::vector{Endpoint{"127.0.0.1", static_cast<std::uint16_t>(7000 + i)}}, access, i));
  }
  for (std::size_t slot = 0; slot < kSlots; ++slot) {
    map->owner[slot] = static_cast<std::uint16_t>(slot * primaries / kSlots);
  }
  return map;
}

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

BlockId id_of(std::uint32_t number) {
  BlockId id{};
  id[3] = std::byte(number);
  std::memcpy(id.data() + 8, &number, sizeof number);
  return id;
}

}  // namespace

TEST(connections_of_one_primary_share_its_window) {
  Window window(8);
  WindowShare one(window);
  CHECK(one.take(4) && one.take(4));
  CHECK(!one.take(1));
  {
    WindowShare other(window);
    CHECK(other.take(6));  // a first block is always allowed
    CHECK(!other.take(1));
    CHECK(window.asked_bytes() == 14);
  }
  CHECK(window.asked_bytes() == 8);  // the lost connection's share is free again
  one.give(4);
  CHECK(one.take(3));
  one.give_all();
  CHECK(window.asked_bytes() == 0);
  CHECK(one.take(100));  // even a block larger than the window
}

// Source: the vectors of the XXH3 specification's reference implementation (seed 0).
TEST(checksum_is_xxh3) {
  CHECK(checksum({}) == 0x2D06800538D394C2ULL);
  std::string data(100'000, '\0');
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7);
  const auto whole = checksum(bytes_of(data));
  for (const std::size_t step : {1UL, 63UL, 64UL, 1000UL, 65536UL}) {
    Checksum sum;
    for (std::size_t at = 0; at < data.size(); at += step) {
      sum.update(bytes_of(std::string_view(data).substr(at, step)));
    }
    CHECK(sum.digest() == whole);
  }
}

TEST(a_header_is_read_back_and_any_flipped_bit_is_noticed) {
  BlockHeader header{id_of(1), id_of(2), 256, 1000, 0x1234567890ABCDEFULL, {}};
  std::array<std::byte, kHeaderBytes> raw;
  encode_header(header, raw);
  CHECK(decode_header(raw) == header);
  for (std::size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    auto flipped = raw;
    flipped[bit / 8] ^= std::byte(1 << bit % 8);
    CHECK(!decode_header(flipped));
  }
  header.codec = Codec::kShuffleZstd;
  encode_header(header, raw);
  CHECK(decode_header(raw) == header);
  header.codec = static_cast<Codec>(2);
  encode_header(header, raw);
  CHECK(!decode_header(raw));
  header.codec = Codec::kPlain;
  for (const std::uint32_t size : {0U, static_cast<std::uint32_t>(kMaxPayloadBytes + 1)}) {
    header.payload_bytes = size;
    encode_header(header, raw);
    CHECK(!decode_header(raw));
  }
}

TEST(a_payload_is_encoded_and_comes_back_and_damage_is_noticed) {
  std::vector<std::byte> raw(700'001);
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    // As in bf16: one byte of noise, one of few values.
    raw[i] = std::byte(i % 2 == 0 ? state >> 24 : 0x3C + (state >> 30));
  }
  std::vector<std::byte> encoded(raw.size()), back(raw.size());
  for (const unsigned width : {1U, 2U, 4U, 8U}) {
    const auto used = shuffle_zstd_encode(raw, width, 1, encoded);
    CHECK(used && *used < raw.size() * 3 / 4);
    CHECK(shuffle_zstd_decode(std::span(encoded).first(*used), back));
    CHECK(back == raw);
    CHECK(!shuffle_zstd_decode(std::span(encoded).first(*used - 1), back));
    CHECK(!shuffle_zstd_decode(std::span(encoded).first(*used), std::span(back).first(9)));
    CHECK(!shuffle_zstd_encode(raw, width, 1, std::span(encoded).first(*used - 1)));
  }
  CHECK(!shuffle_zstd_encode(raw, 3, 1, encoded));
  CHECK(!shuffle_zstd_decode({}, back));
}

TEST(lossy_codecs_bound_their_error_and_all_builds_agree) {
  std::vector<float> plain(64 * 40), back(plain.size());
  std::uint32_t state = 1;
  for (auto& value : plain) {
    state = state * 1664525U + 1013904223U;
    value = (static_cast<float>(state >> 8) / 8388608.0F - 1.0F) * 3.0F;
  }
  plain[5] = std::numeric_limits<float>::quiet_NaN();
  plain[70] = -std::numeric_limits<float>::infinity();
  std::vector<std::byte> encoded(plain.size() + plain.size() / 64 * 2);
  const auto raw = std::as_bytes(std::span(plain));
  for (const auto& [codec, most] : {std::pair{Lossy::kInt8, 0.02F}, std::pair{Lossy::kFp8, 0.2F}}) {
    CHECK(quantize(codec, Number::kFloat, 64, raw, encoded));
    CHECK(dequantize(codec, Number::kFloat, 64, encoded, std::as_writable_bytes(std::span(back))));
    CHECK(back[5] == 0.0F && back[70] == 0.0F);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      if (i != 5 && i != 70) CHECK(std::abs(back[i] - plain[i]) <= most);
    }
    CHECK(!quantize(codec, Number::kFloat, 63, raw, encoded));
    CHECK(!quantize(codec, Number::kFloat, 64, raw, std::span(encoded).first(9)));
  }
  std::vector<std::uint8_t> codes(64), others(64);
  const auto base = kBaseQuantize.int8_from_float(plain.data(), codes.data(), 64);
  CHECK(base != 0);
#ifdef NEVE_AVX2
  if (__builtin_cpu_supports("avx2")) {
    CHECK(kAvx2Quantize.int8_from_float(plain.data(), others.data(), 64) == base);
    CHECK(codes == others);
    CHECK(kAvx2Quantize.fp8_from_float(plain.data(), others.data(), 64) ==
          kBaseQuantize.fp8_from_float(plain.data(), codes.data(), 64));
    CHECK(codes == others);
  }
#endif
}

TEST(int4_takes_a_scale_for_each_channel_of_keys_and_each_token_of_values) {
  constexpr std::size_t kTokens = 16, kSize = 64, kMatrices = 3;
  std::vector<float> plain(kMatrices * kTokens * kSize), back(plain.size());
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    const float wide = i % kSize == 3 ? 100.0F : 1.0F;  // a channel of large numbers
    plain[i] = (static_cast<float>(state >> 8) / 8388608.0F - 1.0F) * wide;
  }
  plain[5] = std::numeric_limits<float>::quiet_NaN();
  const auto raw = std::as_bytes(std::span(plain));
  const auto error_of = [&](Part part, std::size_t groups) {
    std::vector<std::byte> encoded(plain.size() / 2 + kMatrices * groups * 4);
    CHECK(quantize_int4(part, Number::kFloat, kTokens, kSize, raw, encoded));
    CHECK(dequantize_int4(part, Number::kFloat, kTokens, kSize, encoded,
                          std::as_writable_bytes(std::span(back))));
    CHECK(!quantize_int4(part, Number::kFloat, kTokens, kSize, raw, std::span(encoded).first(8)));
    CHECK(!quantize_int4(part, Number::kFloat, kTokens, 63, raw, encoded));
    CHECK(!quantize_int4(part, Number::kFloat, std::size_t{1} << 62, kSize, raw, encoded));
    float most = 0.0F;
    for (std::size_t i = 0; i < plain.size(); ++i) {
      if (i != 5 && i % kSize != 3) most = std::max(most, std::abs(back[i] - plain[i]));
    }
    return most;
  };
  CHECK(error_of(Part::kKeys, kSize) < 0.08F);
  CHECK(error_of(Part::kValues, kTokens) > 0.5F);  // the channel's scale is everybody's
  CHECK(std::abs(back[5]) < 8.0F);
#ifdef NEVE_AVX2
  if (__builtin_cpu_supports("avx2")) {
    const auto codes_of = [&](const QuantizeKernel& kernel) {
      std::vector<std::uint8_t> codes(2 * kTokens * kSize / 2);
      std::vector<std::uint16_t> groups(2 * (kTokens + kSize));
      kernel.keys_from_float(plain.data(), codes.data(), groups.data(), &groups[kSize], kTokens,
                             kSize);
      kernel.values_from_float(plain.data(), &codes[kTokens * kSize / 2], &groups[2 * kSize],
                               &groups[2 * kSize + kTokens], kTokens, kSize);
      return std::pair(codes, groups);
    };
    CHECK(codes_of(kAvx2Quantize) == codes_of(kBaseQuantize));
  }
#endif
}

TEST(slots_follow_the_cluster_specification) {
  CHECK(slot_of("123456789") == 0x31C3);  // the specification's own check value
  CHECK(slot_of("{user1000}.following") == slot_of("user1000"));
  CHECK(slot_of("foo{}{bar}") == slot_of("foo{}{bar}"));
  CHECK(slot_of("foo{{bar}}zap") == slot_of("{bar"));
  CHECK(slot_of("foo{bar}{zap}") == slot_of("bar"));
}

TEST(endpoints) {
  CHECK(read_endpoint("host:1") == (Endpoint{"host", 1}));
  CHECK(read_endpoint("[::1]:65535") == (Endpoint{"::1", 65535}));
  CHECK(read_endpoint("[::1]:65535")->name() == "[::1]:65535");
  CHECK(read_endpoint("unix:/tmp/s") == (Endpoint{"/tmp/s", 0}));
  for (const auto* bad : {"", ":1", "host", "host:", "host:0", "host:65536", "host:x", "unix:"}) {
    CHECK(!read_endpoint(bad));
  }
}

TEST(errors_say_what_to_do) {
  const Endpoint asked{"10.0.0.1", 7000};
  const auto moved = read_error("MOVED 3999 10.0.0.2:7001", asked);
  CHECK(moved.kind == ErrorKind::kMoved && moved.slot == 3999);
  CHECK(moved.to == (Endpoint{"10.0.0.2", 7001}));
  CHECK(read_error("ASK 1 :7002", asked).to == (Endpoint{"10.0.0.1", 7002}));
  for (const auto* bad : {"MOVED", "MOVED 1", "MOVED x a:1", "MOVED 16384 a:1", "MOVED 1 a:0",
                          "MOVED -1 a:1", "ASK 1 unix:/x"}) {
    CHECK(read_error(bad, asked).kind == ErrorKind::kOther);
  }
  const Endpoint socket{"/run/valkey.sock", 0};
  CHECK(read_error("MOVED 1 :7001", socket).kind == ErrorKind::kOther);  // a socket has no host
  CHECK(read_error("TRYAGAIN wait", asked).kind == ErrorKind::kTryAgain);
  CHECK(read_error("CLUSTERDOWN x", asked).kind == ErrorKind::kLater);
  CHECK(read_error("OOM x", asked).kind == ErrorKind::kQuota);
  CHECK(read_error("TOOMANY x", asked).kind == ErrorKind::kMisuse);
  CHECK(read_error("BADKEYS x", asked).kind == ErrorKind::kMisuse);
  CHECK(read_error("NOPERM x", asked).kind == ErrorKind::kRefused);
  CHECK(read_error("ERR Function not found", asked).kind == ErrorKind::kRefused);
}

namespace {

// A payload of which only the size counts.
Payload nowhere(std::size_t size) { return std::span(static_cast<std::byte*>(nullptr), size); }

}  // namespace

TEST(runs_cover_a_batch_once_and_evenly) {
  const auto map = map_of(3);
  const auto keys = keys_of(12);
  std::vector<GetRequest> requests;
  for (std::uint32_t i = 0; i < 400; ++i) {
    requests.push_back({id_of(i), nowhere(1 << 20), nullptr});
  }
  const auto plan = plan_get(keys, requests, true, kNever, *map, 4, 1);
  std::set<std::pair<const Primary*, std::uint32_t>> lanes;
  std::multiset<std::uint32_t> seen;
  for (const auto& run : plan.runs) {
    lanes.insert({run.primary.get(), run.lane});
    for (const auto index : run.operations) {
      seen.insert(index);
      CHECK(map->primary_of(plan.batch->operations[index].slot) == run.primary);
    }
  }
  CHECK(lanes.size() == 12);
  CHECK(plan.runs.size() == 12);
  CHECK(seen.size() == plan.batch->operations.size());
  CHECK(std::set(seen.begin(), seen.end()).size() == seen.size());
}

TEST(small_batches_stay_on_one_lane_and_lanes_take_turns) {
  const auto map = map_of(1);
  const auto keys = keys_of(1);
  const std::vector<GetRequest> requests(8, {id_of(1), nowhere(1000), nullptr});
  std::set<std::uint32_t> lanes;
  for (std::uint32_t turn = 0; turn < 4; ++turn) {
    const auto plan = plan_get(keys, requests, false, kNever, *map, 4, turn);
    CHECK(plan.runs.size() == 1);
    lanes.insert(plan.runs[0].lane);
  }
  CHECK(lanes.size() == 4);
  const std::vector<GetRequest> eight(8, {id_of(1), nowhere(2 << 20), nullptr});
  const auto plan = plan_get(keys, eight, false, kNever, *map, 4, 0);
  CHECK(plan.runs.size() == 4);
  for (const auto& run : plan.runs) CHECK(run.operations.size() == 2);
}

TEST(each_put_stands_before_its_commit_on_the_same_lane) {
  const auto map = map_of(3);
  const auto keys = keys_of(12);
  const std::array<std::byte, 100> payload{};
  std::vector<PutRequest> requests;
  for (std::uint32_t i = 0; i < 2000; ++i) requests.push_back({id_of(i), id_of(0), 1, payload});
  const auto plan = plan_put(keys, requests, kNever, Urgency::kStore, *map);
  const auto& batch = *plan.batch;
  std::size_t puts = 0;
  CHECK(plan.runs.size() == 3);
  for (const auto& run : plan.runs) {
    CHECK(run.lane == 0);
    std::set<std::uint32_t> before;
    for (const auto index : run.operations) {
      const auto& operation = batch.operations[index];
      if (operation.kind == Kind::kPut) {
        before.insert(index);
        ++puts;
        continue;
      }
      const auto& group = batch.groups[operation.group];
      CHECK(group.commit == index);
      CHECK(group.puts.size() <= 256);
      for (const auto put : group.puts) {
        CHECK(before.contains(put));
        CHECK(batch.operations[put].slot == operation.slot);
      }
    }
  }
  CHECK(puts == 2000);
}

TEST(a_breaker_opens_after_three_batches_and_lets_one_probe_through) {
  Breaker breaker;
  Time now = Clock::now();
  for (std::uint64_t serial = 1; serial <= 3; ++serial) {
    CHECK(breaker.allow(now));
    for (int lane = 0; lane < 4; ++lane) breaker.fail(serial, now);  // counts once
  }
  std::uint64_t serial = 10;
  for (const auto pause : {1s, 2s, 4s, 8s, 16s, 30s, 30s}) {
    CHECK(breaker.state() == BreakerState::kOpen);
    CHECK(!breaker.allow(now + pause - 1ms));
    now += pause;
    CHECK(breaker.allow(now));
    CHECK(!breaker.allow(now));
    CHECK(breaker.state() == BreakerState::kHalfOpen);
    breaker.fail(++serial, now);
  }
  now += 30s;
  CHECK(breaker.allow(now));
  breaker.forgive();
  CHECK(breaker.allow(now));
  CHECK(breaker.allow(now + 10s));  // the probe's result was never reported
  breaker.succeed();
  CHECK(breaker.state() == BreakerState::kClosed);
  breaker.fail(100, now);
  breaker.fail(101, now);
  breaker.succeed();
  breaker.fail(102, now);
  breaker.fail(103, now);
  CHECK(breaker.allow(now));
}

TEST(an_outbox_gives_its_bytes_in_order_however_they_are_taken) {
  const std::string payload(1000, 'p');
  for (std::size_t step = 1; step < 1200; step += 37) {
    Outbox outbox;
    std::string expected;
    for (int i = 0; i < 20; ++i) {
      outbox.text() += "head" + std::to_string(i);
      expected += "head" + std::to_string(i);
      outbox.borrow(bytes_of(payload));
      expected += payload;
    }
    outbox.text() += "end";
    outbox.seal();
    expected += "end";
    CHECK(outbox.bytes() == expected.size());
    std::string got;
    while (!outbox.empty()) {
      std::array<iovec, 3> vectors;
      const auto filled = outbox.vectors(vectors);
      std::size_t left = step, taken = 0;
      for (std::size_t i = 0; i < filled && left > 0; ++i) {
        const auto count = std::min(left, vectors[i].iov_len);
        got.append(static_cast<const char*>(vectors[i].iov_base), count);
        left -= count;
        taken += count;
      }
      outbox.consume(taken);
    }
    CHECK(got == expected);
  }
}

TEST(a_payload_in_runs_is_the_same_bytes_wherever_it_is_cut) {
  std::vector<std::byte> memory(10'000);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = std::byte(i * 7);
  const std::span bytes(memory);
  Payload payload;
  std::vector<std::byte> expected;
  const std::vector<std::pair<std::size_t, std::size_t>> runs{{9000, 1},  {5000, 999}, {1, 0},
                                                              {4000, 64}, {200, 3000}, {0, 5}};
  for (const auto& [at, size] : runs) {
    const auto run = bytes.subspan(at, size);
    payload.add(run);
    expected.insert(expected.end(), run.begin(), run.end());
  }
  CHECK(payload.size() == expected.size() && !payload.is_whole());
  CHECK(payload.checksum() == checksum(expected));
  for (std::size_t at = 0; at <= expected.size(); at += 97) {
    std::array<iovec, 2> vectors{};
    std::size_t filled = 0;
    const auto count = payload.vectors(at, 500, vectors, filled);
    std::vector<std::byte> got;
    for (std::size_t i = 0; i < filled; ++i) {
      const auto* begin = static_cast<const std::byte*>(vectors[i].iov_base);
      got.insert(got.end(), begin, begin + vectors[i].iov_len);
    }
    CHECK(got.size() == count && (count > 0) == (at < expected.size()));
    CHECK(std::equal(got.begin(), got.end(), expected.begin() + static_cast<std::ptrdiff_t>(at)));
  }
}

namespace {

// Files on a disk and on a RAM disk are read in different ways.
void read_blocks_of_files(const std::string& folder) {
  const std::string path = folder + "/neve-local-read-" + std::to_string(::getpid());
  std::vector<std::byte> payload(300'000, std::byte{7});
  const SpaceTag tag{std::byte{1}};
  const BlockHeader header{
      id_of(1), id_of(0), 16, static_cast<std::uint32_t>(payload.size()), checksum(payload), tag};
  std::array<std::byte, kHeaderBytes> raw{};
  encode_header(header, raw);
  std::vector<std::byte> whole(raw.begin(), raw.end());
  whole.insert(whole.end(), payload.begin(), payload.end());
  const auto read = [&](std::span<const std::byte> file, BlockId id, SpaceTag of,
                        bool end = false) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(file.data()),
               static_cast<std::streamsize>(file.size()));
    std::vector<std::byte> out(payload.size());
    LocalRead one(of, {{path, id, out}});
    if (end) one.end();
    one.run(Clock::now() + 10s);
    const auto status = one.statuses().front();
    std::vector<std::byte> apart(payload.size());
    LocalRead other(of, {{path, id, in_runs(apart, 1000)}});
    if (end) other.end();
    other.run(Clock::now() + 10s);
    CHECK(other.statuses().front() == status && (status != Status::kOk || apart == out));
    CHECK((out == payload) == (status == Status::kOk) || status == Status::kCorrupt);
    if (status == Status::kOk) CHECK(one.moved_bytes() == file.size());
    if (end) CHECK(out == std::vector<std::byte>(out.size()));
    return status;
  };
  CHECK(read(whole, id_of(1), tag) == Status::kOk);
  CHECK(read(whole, id_of(2), tag) == Status::kCorrupt);
  CHECK(read(whole, id_of(1), SpaceTag{}) == Status::kCorrupt);
  CHECK(read(whole, id_of(1), tag, true) == Status::kTimeout);
  for (const std::size_t left :
       {std::size_t{0}, std::size_t{63}, std::size_t{64}, std::size_t{1000}, whole.size() - 1}) {
    CHECK(read(std::span(whole).first(left), id_of(1), tag) == Status::kCorrupt);
  }
  whole.back() ^= std::byte{1};
  CHECK(read(whole, id_of(1), tag) == Status::kCorrupt);
  whole.back() ^= std::byte{1};
  whole.push_back(std::byte{});
  CHECK(read(whole, id_of(1), tag) == Status::kCorrupt);
  std::remove(path.c_str());
  std::vector<std::byte> out(payload.size());
  LocalRead gone(tag, {{path, id_of(1), out}});
  gone.run(Clock::now() + 10s);
  CHECK(gone.statuses().front() == Status::kEvicted);
}

}  // namespace

TEST(a_block_is_read_from_its_file_only_if_all_of_it_is_right) { read_blocks_of_files("/tmp"); }

TEST(a_block_is_read_from_a_ram_disk_only_if_all_of_it_is_right) {
  read_blocks_of_files("/dev/shm");
}
