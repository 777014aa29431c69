// How fast this processor digests blocks, by one thread: CRC32C by its instruction, XXH3 by the
// core's own builds of it. Prints JSON: {algorithm: {"in cache": [GB per processor second of each
// round], ...}}.
// benchmarks/checksum.py compiles and runs it: checksum BLOCK_BYTES ROUNDS SECONDS

#include <nmmintrin.h>
#include <time.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checksum_kernel.h"

namespace neve {
extern const ChecksumKernel kAvx512Kernel;
}

namespace {

constexpr std::size_t kMemoryBytes = std::size_t{512} << 20;  // more than any cache holds

std::uint64_t word(const std::byte* at) {
  std::uint64_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// One chain: each instruction waits for the one before it.
__attribute__((target("sse4.2"))) std::uint32_t crc_chain(std::uint32_t crc, const std::byte* data,
                                                          std::size_t size) {
  std::uint64_t state = crc;
  for (; size >= 8; data += 8, size -= 8) state = _mm_crc32_u64(state, word(data));
  crc = static_cast<std::uint32_t>(state);
  for (; size > 0; ++data, --size) crc = _mm_crc32_u8(crc, std::to_integer<std::uint8_t>(*data));
  return crc;
}

// What `size` zero bytes make of a state, as a matrix over GF(2): column i is the result for bit i.
using Matrix = std::array<std::uint32_t, 32>;

std::uint32_t apply(const Matrix& matrix, std::uint32_t state) {
  std::uint32_t out = 0;
  for (std::size_t i = 0; i < 32; ++i) out ^= (state >> i & 1) != 0 ? matrix[i] : 0;
  return out;
}

const Matrix& zeros(std::size_t size) {
  static std::map<std::size_t, Matrix> known;
  const auto [at, is_new] = known.try_emplace(size);
  if (is_new) {
    const std::vector<std::byte> nothing(size);
    for (std::size_t i = 0; i < 32; ++i) {
      at->second[i] = crc_chain(std::uint32_t{1} << i, nothing.data(), size);
    }
  }
  return at->second;
}

// Three chains at once fill the instruction's pipeline (latency 3, one each cycle).
__attribute__((target("sse4.2"))) std::uint64_t crc32c(const void* start, std::size_t size) {
  const auto* data = static_cast<const std::byte*>(start);
  const std::size_t lane = size / 24 * 8;
  std::uint64_t a = 0xFFFFFFFF, b = 0, c = 0;
  for (std::size_t i = 0; i < lane; i += 8) {
    a = _mm_crc32_u64(a, word(data + i));
    b = _mm_crc32_u64(b, word(data + lane + i));
    c = _mm_crc32_u64(c, word(data + 2 * lane + i));
  }
  const auto& shift = zeros(lane);
  auto crc = apply(shift, static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b);
  crc = apply(shift, crc) ^ static_cast<std::uint32_t>(c);
  crc = crc_chain(crc, data + 3 * lane, size - 3 * lane);
  return crc ^ 0xFFFFFFFF;
}

std::uint64_t crc32c_chain(const void* data, std::size_t size) {
  return crc_chain(0xFFFFFFFF, static_cast<const std::byte*>(data), size) ^ 0xFFFFFFFF;
}

// No checksum: what it costs only to look at the bytes.
std::uint64_t read_only(const void* start, std::size_t size) {
  const auto* data = static_cast<const std::byte*>(start);
  std::array<std::uint64_t, 8> sums{};
  for (std::size_t i = 0; i + 64 <= size; i += 64) {
    for (std::size_t j = 0; j < 8; ++j) sums[j] += word(data + i + 8 * j);
  }
  std::uint64_t all = 0;
  for (const auto sum : sums) all += sum;
  return all;
}

using Algorithm = std::uint64_t (*)(const void*, std::size_t);

std::vector<std::pair<std::string, Algorithm>> algorithms() {
  std::vector<std::pair<std::string, Algorithm>> all{
      {"crc32c, one chain", crc32c_chain},
      {"crc32c, three chains", crc32c},
      {"xxh3 SSE2", neve::kBaseKernel.once},
  };
  if (__builtin_cpu_supports("avx2")) all.emplace_back("xxh3 AVX2", neve::kAvx2Kernel.once);
  if (__builtin_cpu_supports("avx512f")) all.emplace_back("xxh3 AVX-512", neve::kAvx512Kernel.once);
  all.emplace_back("only reading", read_only);
  return all;
}

void check(const std::vector<std::byte>& memory) {
  const bool right = crc32c_chain("123456789", 9) == 0xE3069283;  // the algorithm's check value
  for (const std::size_t size : {0UL, 9UL, 24UL, 1000UL, 1000003UL}) {
    if (!right || crc32c(memory.data(), size) != crc32c_chain(memory.data(), size)) {
      std::fprintf(stderr, "crc32c is wrong\n");
      std::exit(EXIT_FAILURE);
    }
  }
}

volatile std::uint64_t sink;

// Of this thread: others that run meanwhile only take away cache and bandwidth.
double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

double measure(Algorithm algorithm, const std::vector<std::byte>& memory, std::size_t block,
               std::size_t blocks, double seconds) {
  const double started = processor_seconds();
  double took = 0;
  std::uint64_t done = 0;
  do {
    sink = algorithm(memory.data() + done % blocks * block, block);
    ++done;
    took = processor_seconds() - started;
  } while (took < seconds);
  return static_cast<double>(done * block) / took / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return EXIT_FAILURE;
  const std::size_t block = std::strtoull(argv[1], nullptr, 10);
  const int rounds = std::atoi(argv[2]);
  const double seconds = std::atof(argv[3]);
  std::vector<std::byte> memory(kMemoryBytes);
  std::mt19937_64 random(1);
  for (std::size_t i = 0; i < memory.size(); i += 8) {
    const auto value = random();
    std::memcpy(memory.data() + i, &value, sizeof value);
  }
  check(memory);
  const std::pair<const char*, std::size_t> places[]{{"in cache", 1},
                                                     {"in memory", kMemoryBytes / block}};
  std::map<std::string, std::map<std::string, std::vector<double>>> speeds;
  for (int round = 0; round <= rounds; ++round) {
    for (const auto& [name, algorithm] : algorithms()) {
      for (const auto& [place, blocks] : places) {
        const double speed = measure(algorithm, memory, block, blocks, seconds);
        if (round > 0) speeds[name][place].push_back(speed);  // the first one warms up
      }
    }
  }
  const char* separator = "{";
  for (const auto& [name, algorithm] : algorithms()) {
    std::printf("%s\"%s\": {", separator, name.c_str());
    separator = ", ";
    const char* inner = "";
    for (const auto& [place, blocks] : places) {
      std::printf("%s\"%s\": [", inner, place);
      inner = ", ";
      for (std::size_t i = 0; i < speeds[name][place].size(); ++i) {
        std::printf("%s%.3f", i > 0 ? ", " : "", speeds[name][place][i]);
      }
      std::printf("]");
    }
    std::printf("}");
  }
  std::printf("}\n");
}
