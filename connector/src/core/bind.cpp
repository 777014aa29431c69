// The Python module neve._core. The only file that knows Python.
//
// Submitting reads addresses and lengths of buffers under the GIL and keeps references to the
// buffers until the batch is done. It does not release the GIL: submitting takes microseconds, and
// regaining the GIL from a busy thread up to 5 ms (docs/decisions/002-native-core.md). Waiting
// releases it.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "codec.h"
#include "command.h"
#include "core.h"
#include "local_read.h"
#include "quantize.h"
#include "ranged_get.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace neve {
namespace {

using Ids = nb::typed<nb::sequence, nb::bytes>;
using Buffers = nb::typed<nb::sequence, nb::object>;  // contiguous host memory
using Numbers = nb::typed<nb::dict, nb::str, nb::int_>;
using TlsFields = nb::typed<nb::dict, nb::str, nb::str>;
using Buckets =
    nb::typed<nb::sequence, nb::typed<nb::tuple, nb::bytes, nb::typed<nb::list, nb::bytes>>>;

// Interval at which a wait checks for Python's signals.
constexpr Duration kSignalCheck = std::chrono::milliseconds(200);

class Scattered;
const Payload* scattered_payload(nb::handle object);

// Contiguous memory of an object with the buffer protocol, or of a CPU tensor with DLPack; or the
// runs of a Scattered. Destroy it under the GIL.
class Memory {
 public:
  Memory(nb::handle object, bool writable) {
    if (const auto* runs = scattered_payload(object); runs != nullptr) {
      owner_ = nb::borrow(object);
      payload_ = *runs;
    } else if (PyObject_CheckBuffer(object.ptr())) {
      const int flags = writable ? PyBUF_SIMPLE | PyBUF_WRITABLE : PyBUF_SIMPLE;
      if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nb::python_error();
      held_ = true;
      data_ = static_cast<std::byte*>(view_.buf);
      size_ = static_cast<std::size_t>(view_.len);
    } else if (writable) {
      take(nb::cast<nb::ndarray<nb::c_contig>>(object));
    } else {
      take(nb::cast<nb::ndarray<nb::ro, nb::c_contig>>(object));
    }
  }
  Memory(Memory&& other) noexcept
      : view_(other.view_),
        held_(std::exchange(other.held_, false)),
        tensor_(std::move(other.tensor_)),
        owner_(std::move(other.owner_)),
        payload_(std::move(other.payload_)),
        data_(other.data_),
        size_(other.size_) {}
  Memory& operator=(Memory&&) = delete;
  ~Memory() {
    if (held_) PyBuffer_Release(&view_);
  }

  std::span<std::byte> bytes() const {
    if (owner_.is_valid()) throw nb::value_error("memory must be in one run");
    return {data_, size_};
  }
  Payload payload() const { return owner_.is_valid() ? payload_ : Payload(bytes()); }

 private:
  template <typename Tensor>
  void take(Tensor tensor) {
    constexpr int kCudaHost = 3, kRocmHost = 11;  // pinned host memory. Source: dlpack.h
    const int device = tensor.device_type();
    if (device != nb::device::cpu::value && device != kCudaHost && device != kRocmHost) {
      throw nb::value_error("memory must be the host's");
    }
    data_ = static_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(tensor.data())));
    size_ = tensor.nbytes();
    tensor_ = nb::ndarray<>(tensor.handle());
  }

  Py_buffer view_{};
  bool held_ = false;
  nb::ndarray<> tensor_;
  nb::object owner_;  // of `payload_`
  Payload payload_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Python's payload in several runs of memory that it keeps. Destroyed under the GIL.
class Scattered {
 public:
  Scattered(std::shared_ptr<const std::vector<Memory>> memory, Payload payload)
      : memory_(std::move(memory)), payload_(std::move(payload)) {}

  const Payload& payload() const { return payload_; }
  std::size_t size() const { return payload_.size(); }

  nb::bytearray copy() const {
    auto out = nb::bytearray(nullptr, 0);
    out.resize(payload_.size());
    auto* to = static_cast<std::byte*>(out.data());
    const nb::gil_scoped_release release;
    payload_.visit(0, payload_.size(), [&](std::span<const std::byte> run) {
      std::memcpy(to, run.data(), run.size());
      to += run.size();
    });
    return out;
  }

  void fill(nb::handle data) const {
    const Memory from(data, false);
    if (from.bytes().size() != payload_.size()) throw nb::value_error("need as many bytes");
    payload_.write(0, from.bytes());
  }

 private:
  std::shared_ptr<const std::vector<Memory>> memory_;
  Payload payload_;
};

const Payload* scattered_payload(nb::handle object) {
  return nb::isinstance<Scattered>(object) ? &nb::inst_ptr<Scattered>(object)->payload() : nullptr;
}

nb::typed<nb::list, Scattered> scatter(const Buffers& memory,
                                       const std::vector<std::size_t>& addresses,
                                       const std::vector<std::size_t>& sizes, std::size_t count) {
  if (count == 0 || addresses.size() != sizes.size() || addresses.size() % count != 0) {
    throw nb::value_error("need one size for each address, and as many for each payload");
  }
  auto kept = std::make_shared<std::vector<Memory>>();
  kept->reserve(nb::len(memory));
  for (nb::handle each : memory) kept->emplace_back(each, true);
  const auto is_inside = [&](std::size_t address, std::size_t size) {
    return std::any_of(kept->begin(), kept->end(), [&](const Memory& each) {
      const auto bytes = each.bytes();
      const auto begin = reinterpret_cast<std::size_t>(bytes.data());
      return address >= begin && size <= bytes.size() && address - begin <= bytes.size() - size;
    });
  };
  nb::list out;
  const auto runs = addresses.size() / count;
  for (std::size_t i = 0; i < count; ++i) {
    Payload payload;
    for (std::size_t run = i * runs; run < (i + 1) * runs; ++run) {
      if (!is_inside(addresses[run], sizes[run])) {
        throw nb::value_error("an address lies outside the memory");
      }
      payload.add({reinterpret_cast<const std::byte*>(addresses[run]), sizes[run]});
    }
    out.append(nb::cast(Scattered(kept, std::move(payload))));
  }
  return nb::typed<nb::list, Scattered>(out);
}

template <std::size_t Size>
std::array<std::byte, Size> fixed_bytes(nb::handle object, const char* what) {
  std::array<std::byte, Size> out;
  nb::bytes raw;
  if (!nb::try_cast(object, raw) || raw.size() != Size) {
    throw nb::value_error(
        (std::string(what) + " must be " + std::to_string(Size) + " bytes").c_str());
  }
  std::memcpy(out.data(), raw.data(), Size);
  return out;
}

std::string_view text_of(const nb::bytes& raw) {
  return {static_cast<const char*>(raw.data()), raw.size()};
}

// Values become bytes, error replies str.
nb::object to_python(const resp::Reply& reply) {
  switch (reply.type) {
    case resp::Type::kNull:
      return nb::none();
    case resp::Type::kInteger:
      return nb::int_(reply.integer);
    case resp::Type::kBoolean:
      return nb::bool_(reply.integer != 0);
    case resp::Type::kError: {
      PyObject* text = PyUnicode_DecodeUTF8(reply.text.data(),
                                            static_cast<Py_ssize_t>(reply.text.size()), "replace");
      if (text == nullptr) throw nb::python_error();
      return nb::steal(text);
    }
    case resp::Type::kText:
    case resp::Type::kBulk:
      return nb::bytes(reply.text.data(), reply.text.size());
    default:
      break;
  }
  nb::list items;
  for (const auto& item : reply.items) items.append(to_python(item));
  return items;
}

// Python's reference to a batch and to the memory it uses.
class PyBatch {
 public:
  PyBatch(std::shared_ptr<Core> core, std::shared_ptr<Batch> batch, std::vector<Memory> memory)
      : core_(std::move(core)), batch_(std::move(batch)), memory_(std::move(memory)) {}
  PyBatch(PyBatch&&) = default;
  ~PyBatch() {
    // Dropped in flight: wait until no I/O thread uses the memory. A forked child has no I/O
    // threads, so it must not wait.
    if (batch_ && !done()) {
      if (core_->is_forked()) return;
      core_->cancel(batch_);
      const nb::gil_scoped_release release;
      batch_->wait_until(kNever);
    }
  }

  bool wait(double until_s) const {
    return wait_in_slices(until_s, [this](Time until) { return batch_->wait_until(until); });
  }

  std::pair<bool, bool> wait_claim(double until_s) const {
    bool ours = false;
    const bool done =
        wait_in_slices(until_s, [&](Time until) { return batch_->wait_claim(until, ours); });
    return {done, ours};
  }

  nb::bytes statuses() const {
    std::string out(batch_->visible, static_cast<char>(Status::kPending));
    if (done()) {
      for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = static_cast<char>(batch_->operations[i].status);
      }
    }
    return nb::bytes(out.data(), out.size());
  }

  nb::object reply(std::size_t index) const {
    if (!done() || index >= batch_->visible) return nb::none();
    return to_python(batch_->operations[index].reply);
  }

  std::uint64_t serial() const { return batch_->serial; }
  bool done() const { return !core_->is_forked() && batch_->done(); }
  bool claim() const { return batch_->claim(); }
  void cancel() const { core_->cancel(batch_); }
  std::string trouble() const { return batch_->trouble(); }
  void notify(const std::shared_ptr<CompletionQueue>& queue) const { batch_->notify(queue); }
  const Batch& batch() const { return *batch_; }

 private:
  // Waits without the GIL; checks for Python's signals every kSignalCheck.
  template <typename WaitUntil>
  bool wait_in_slices(double until_s, WaitUntil wait_until) const {
    core_->check_process();
    const Time until = time_from_seconds(until_s);
    while (true) {
      bool done = false;
      const Time slice = Clock::now() + kSignalCheck;
      {
        const nb::gil_scoped_release release;
        done = wait_until(std::min(until, slice));
      }
      if (done || Clock::now() >= until) return done;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
  }

  std::shared_ptr<Core> core_;
  std::shared_ptr<Batch> batch_;
  std::vector<Memory> memory_;
};

class PyMatchBatch : public PyBatch {
 public:
  PyMatchBatch(std::shared_ptr<Core> core, MatchPlan plan)
      : PyBatch(std::move(core), plan.plan.batch, {}), plan_(std::move(plan)) {}

  std::pair<int, nb::bytes> rows() const {
    Status status = Status::kPending;
    std::string rows;
    if (done()) rows = matched_rows(batch(), plan_, status);
    return {static_cast<int>(status), nb::bytes(rows.data(), rows.size())};
  }

 private:
  MatchPlan plan_;
};

std::shared_ptr<Keyspace> make_keyspace(std::uint32_t space_id, nb::bytes tag,
                                        const Buckets& buckets) {
  auto keys = std::make_shared<Keyspace>();
  keys->space_id = space_id;
  keys->tag = fixed_bytes<4>(tag, "the space's tag");
  for (nb::handle item : buckets) {
    const auto [prefix, bookkeeping] = nb::cast<std::pair<nb::bytes, std::vector<nb::bytes>>>(item);
    if (bookkeeping.size() != kBookkeepingKeys) throw nb::value_error("need 7 bookkeeping keys");
    Bucket bucket;
    bucket.block_prefix = text_of(prefix);
    bucket.slot = slot_of(bucket.block_prefix);
    for (const auto& key : bookkeeping) command::argument(bucket.bookkeeping, text_of(key));
    keys->buckets.push_back(std::move(bucket));
  }
  if (keys->buckets.empty()) throw nb::value_error("need at least one bucket");
  return keys;
}

Address make_address(std::vector<std::string> seeds, std::optional<std::string> username,
                     std::optional<std::string> password, std::optional<TlsFields> tls) {
  Address address{std::move(seeds), username.value_or(""), std::move(password), std::nullopt};
  if (tls) {
    TlsOptions options;
    const auto set = [&](const char* name, std::string& field) {
      if (tls->contains(name)) field = nb::cast<std::string>((*tls)[name]);
    };
    set("ca_file", options.ca_file);
    set("server_name", options.server_name);
    set("certificate_file", options.certificate_file);
    set("key_file", options.key_file);
    address.tls = std::move(options);
  }
  return address;
}

nb::str name_of(BreakerState state) {
  switch (state) {
    case BreakerState::kClosed:
      return nb::str("closed");
    case BreakerState::kOpen:
      return nb::str("open");
    case BreakerState::kHalfOpen:
      break;
  }
  return nb::str("half_open");
}

Time time_or_now(std::optional<double> seconds) {
  return seconds ? time_from_seconds(*seconds) : Clock::now();
}

// Python's class Core. Its batches share ownership and may outlive it.
struct PyCore {
  std::shared_ptr<Core> core;

  PyBatch get(const std::shared_ptr<Keyspace>& keys, const Ids& ids, const Buffers& buffers,
              double deadline, bool touch, std::optional<nb::object> headers) const {
    std::vector<Memory> memory;
    std::vector<GetRequest> requests;
    memory.reserve(nb::len(buffers) + 1);
    for (nb::handle id : ids) requests.push_back({fixed_bytes<16>(id, "an id"), {}, nullptr});
    for (nb::handle buffer : buffers) memory.emplace_back(buffer, true);
    if (memory.size() != requests.size()) throw nb::value_error("need one buffer for each id");
    for (std::size_t i = 0; i < requests.size(); ++i) requests[i].payload = memory[i].payload();
    if (headers) {
      const auto raw = memory.emplace_back(*headers, true).bytes();
      if (raw.size() != kHeaderBytes * requests.size()) {
        throw nb::value_error("need 64 bytes of headers for each id");
      }
      for (std::size_t i = 0; i < requests.size(); ++i) {
        requests[i].header_out = raw.data() + i * kHeaderBytes;
      }
    }
    auto batch = core->get(*keys, requests, touch, time_from_seconds(deadline));
    return {core, std::move(batch), std::move(memory)};
  }

  PyBatch put(const std::shared_ptr<Keyspace>& keys, const Ids& ids, const Ids& parents,
              const std::vector<std::uint32_t>& tokens, const Buffers& buffers, double deadline,
              unsigned urgency) const {
    std::vector<Memory> memory;
    std::vector<PutRequest> requests;
    memory.reserve(nb::len(buffers));
    for (nb::handle id : ids) requests.push_back({fixed_bytes<16>(id, "an id"), {}, 0, {}});
    for (nb::handle buffer : buffers) memory.emplace_back(buffer, false);
    if (memory.size() != requests.size() || tokens.size() != requests.size() ||
        nb::len(parents) != requests.size() || urgency >= kUrgencies) {
      throw nb::value_error("need one parent, number of tokens and buffer for each id");
    }
    for (std::size_t i = 0; i < requests.size(); ++i) {
      requests[i].parent = fixed_bytes<16>(parents[i], "a parent");
      requests[i].tokens = tokens[i];
      requests[i].payload = memory[i].payload();
      if (requests[i].payload.empty() || requests[i].payload.size() > kMaxPayloadBytes) {
        throw nb::value_error("a payload must have 1 byte to 64 MiB");
      }
    }
    auto batch =
        core->put(*keys, requests, time_from_seconds(deadline), static_cast<Urgency>(urgency));
    return {core, std::move(batch), std::move(memory)};
  }

  PyBatch call(const std::vector<std::vector<nb::bytes>>& commands,
               const std::vector<nb::bytes>& keys, double deadline, bool idempotent) const {
    if (commands.size() != keys.size()) throw nb::value_error("need one key for each command");
    std::vector<CallRequest> requests;
    for (std::size_t i = 0; i < commands.size(); ++i) {
      CallRequest request;
      request.slot = slot_of(text_of(keys[i]));
      request.idempotent = idempotent;
      command::begin(request.command, commands[i].size());
      for (const auto& argument : commands[i])
        command::argument(request.command, text_of(argument));
      requests.push_back(std::move(request));
    }
    return {core, core->call(std::move(requests), time_from_seconds(deadline)), {}};
  }

  PyMatchBatch match(const std::shared_ptr<Keyspace>& keys, const Ids& ids, double deadline) const {
    std::vector<BlockId> wanted;
    for (nb::handle id : ids) wanted.push_back(fixed_bytes<16>(id, "an id"));
    MatchPlan plan;
    core->match(*keys, wanted, time_from_seconds(deadline), plan);
    return {core, std::move(plan)};
  }

  void close() const {
    const nb::gil_scoped_release release;
    core->close();
  }

  Numbers counters() const {
    const auto now = core->counters();
    Numbers out;
    out["connections_opened"] = now.connections_opened;
    out["connections_lost"] = now.connections_lost;
    out["retried"] = now.retried;
    out["dropped"] = now.dropped;
    out["bytes_waiting"] = now.bytes_waiting;
    out["primaries"] = core->primaries();
    return out;
  }
};

using WantedBlocks = nb::typed<nb::sequence, nb::typed<nb::tuple, nb::int_, nb::bytes, nb::object,
                                                       nb::object, nb::int_, nb::int_>>;

Answer get_range(RangedGets& self, const std::string& url, std::uint64_t first, std::uint64_t last,
                 const WantedBlocks& blocks, double deadline, Stop& stop) {
  std::vector<Memory> memory;
  std::vector<WantedBlock> wanted;
  memory.reserve(2 * nb::len(blocks));
  for (nb::handle item : blocks) {
    const auto [offset, id, header, payload, codec, encoded_bytes] = nb::cast<
        std::tuple<std::uint64_t, nb::object, nb::object, nb::object, std::uint8_t, std::uint32_t>>(
        item);
    const bool is_plain = codec == static_cast<std::uint8_t>(Codec::kPlain);
    if (!is_known(codec) || (is_plain && encoded_bytes > 0)) throw nb::value_error("unknown codec");
    if (encoded_bytes > kMaxPayloadBytes) throw nb::value_error("an encoded payload is too long");
    const auto head = memory.emplace_back(header, true).bytes();
    if (head.size() != kHeaderBytes) throw nb::value_error("need 64 bytes for a header");
    wanted.push_back({offset, fixed_bytes<16>(id, "an id"), head.data(),
                      memory.emplace_back(payload, true).payload(), static_cast<Codec>(codec),
                      encoded_bytes});
    const auto& block = wanted.back();
    const auto least = wanted.size() > 1 ? wanted[wanted.size() - 2].end() : first;
    if (block.payload.empty() || block.payload.size() > kMaxPayloadBytes || block.offset < least ||
        block.end() - 1 > last) {
      throw nb::value_error("blocks must be in order and within the range");
    }
  }
  if (last < first) throw nb::value_error("blocks must be in order and within the range");
  const nb::gil_scoped_release release;
  return self.get(url, {first, last}, wanted, time_from_seconds(deadline), stop);
}

const char* name_of(Failure failure) {
  switch (failure) {
    case Failure::kNone:
      return "";
    case Failure::kAddress:
      return "address";
    case Failure::kUnreachable:
      return "unreachable";
    case Failure::kBroken:
      return "broken";
    case Failure::kLate:
      return "late";
    case Failure::kStopped:
      break;
  }
  return "stopped";
}

using LocalBlocks = nb::typed<nb::sequence, nb::typed<nb::tuple, nb::str, nb::bytes, nb::object>>;

// Keeps the payloads' memory: destroy it under the GIL.
class PyLocalRead {
 public:
  PyLocalRead(nb::bytes tag, const LocalBlocks& blocks) {
    std::vector<LocalBlock> wanted;
    memory_.reserve(nb::len(blocks));
    for (nb::handle item : blocks) {
      auto [path, id, payload] = nb::cast<std::tuple<std::string, nb::object, nb::object>>(item);
      wanted.push_back({std::move(path), fixed_bytes<16>(id, "an id"),
                        memory_.emplace_back(payload, true).payload()});
    }
    read_ = std::make_unique<LocalRead>(fixed_bytes<4>(tag, "the space's tag"), std::move(wanted));
  }

  bool run(double deadline) const {
    const nb::gil_scoped_release release;
    return read_->run(time_from_seconds(deadline));
  }
  void end() const { read_->end(); }
  std::string trouble() const { return read_->trouble(); }
  std::uint64_t moved_bytes() const { return read_->moved_bytes(); }
  nb::bytes statuses() const {
    const auto found = read_->statuses();
    return nb::bytes(found.data(), found.size());
  }

 private:
  std::vector<Memory> memory_;
  std::unique_ptr<LocalRead> read_;
};

nb::bytes bytes_of(std::string_view text) { return nb::bytes(text.data(), text.size()); }

}  // namespace
}  // namespace neve

NB_MODULE(_core, m) {
  using namespace neve;
  nb::set_leak_warnings(false);  // daemon threads may keep transfers when the interpreter ends
  m.doc() = "Neve's data path: I/O threads that never take the GIL. Use neve.datapath.transport.";

  m.def(
      "statuses",
      [] {
        Numbers statuses;
        for (const auto& [name, status] : kStatusNames) {
          statuses[nb::str(name.data(), name.size())] = static_cast<int>(status);
        }
        return statuses;
      },
      "Names of the bytes that `Batch.statuses` gives.");
  m.def(
      "silence_options",
      [] {
        nb::typed<nb::dict, nb::int_, nb::int_> options;
        for (const auto& [name, value] : silence_options()) options[nb::int_(name)] = value;
        return options;
      },
      "Options of TCP with which a connection that died silently fails in seconds.");
  m.attr("CHECKSUM_KERNEL") = checksum_kernel_name();
  m.def(
      "checksum", [](nb::handle data) { return checksum(Memory(data, false).bytes()); }, "data"_a,
      "XXH3-64 of contiguous memory.");
  m.def(
      "view",
      [](nb::object tensor, bool writable) {
        const auto memory = Memory(tensor, writable).bytes();
        return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(memory.data(), {memory.size()},
                                                                 tensor);
      },
      "tensor"_a, "writable"_a, "The bytes of a contiguous host tensor that speaks DLPack.");
  nb::class_<Scattered>(m, "Scattered", "A payload in several runs of memory, in order.")
      .def("__len__", &Scattered::size, "Bytes.")
      .def("copy", &Scattered::copy, "All bytes, in one run.")
      .def("fill", &Scattered::fill, "data"_a, "Overwrites all bytes.");
  m.def("scatter", &scatter, "memory"_a, "addresses"_a, "sizes"_a, "count"_a,
        "Payloads of equally many runs each: (address, size) within one of the writable `memory`,\n"
        "which they keep. Raises `ValueError` for a run that lies outside.");
  m.def(
      "slot_of", [](nb::bytes key) { return slot_of(text_of(key)); }, "key"_a,
      "Hash slot of a key in a Valkey Cluster.");

  m.def(
      "shuffle_zstd_encode",
      [](nb::handle raw, unsigned width, int level, nb::handle out) -> std::size_t {
        const Memory from(raw, false), to(out, true);
        const nb::gil_scoped_release release;
        return shuffle_zstd_encode(from.bytes(), width, level, to.bytes()).value_or(0);
      },
      "raw"_a, "width"_a, "level"_a, "out"_a,
      "Encodes numbers of `width` bytes, without the GIL. Bytes written to `out`; 0: too many.");
  m.def(
      "shuffle_zstd_decode",
      [](nb::handle encoded, nb::handle raw) {
        const Memory from(encoded, false), to(raw, true);
        const nb::gil_scoped_release release;
        return shuffle_zstd_decode(from.bytes(), to.bytes());
      },
      "encoded"_a, "raw"_a, "Fills `raw`, without the GIL. False: the encoded bytes are damaged.");

  const auto with_codec = [](auto function) {
    return [function](std::string_view codec, std::string_view number, std::size_t vector,
                      nb::handle source, nb::handle target) {
      const Memory from(source, false), to(target, true);
      if ((codec != "int8" && codec != "fp8") || (number != "bfloat16" && number != "float32")) {
        throw nb::value_error("need int8 or fp8, of bfloat16 or float32");
      }
      const nb::gil_scoped_release release;
      return function(codec == "int8" ? Lossy::kInt8 : Lossy::kFp8,
                      number == "bfloat16" ? Number::kBf16 : Number::kFloat, vector, from.bytes(),
                      to.bytes());
    };
  };
  m.def("quantize", with_codec(quantize), "codec"_a, "number"_a, "vector"_a, "plain"_a, "encoded"_a,
        "Encodes with loss, without the GIL. False: the sizes do not fit each other.");
  m.def("dequantize", with_codec(dequantize), "codec"_a, "number"_a, "vector"_a, "encoded"_a,
        "plain"_a, "The other way.");
  const auto with_part = [](auto function) {
    return [function](std::string_view part, std::string_view number, std::size_t tokens,
                      std::size_t size, nb::handle source, nb::handle target) {
      const Memory from(source, false), to(target, true);
      if ((part != "keys" && part != "values") || (number != "bfloat16" && number != "float32")) {
        throw nb::value_error("need keys or values, of bfloat16 or float32");
      }
      const nb::gil_scoped_release release;
      return function(part == "keys" ? Part::kKeys : Part::kValues,
                      number == "bfloat16" ? Number::kBf16 : Number::kFloat, tokens, size,
                      from.bytes(), to.bytes());
    };
  };
  m.def("quantize_int4", with_part(quantize_int4), "part"_a, "number"_a, "tokens"_a, "size"_a,
        "plain"_a, "encoded"_a,
        "Encodes matrices of `tokens` rows of `size` numbers, without the GIL: keys by channel, "
        "values by\ntoken. False: the sizes do not fit each other.");
  m.def("dequantize_int4", with_part(dequantize_int4), "part"_a, "number"_a, "tokens"_a, "size"_a,
        "encoded"_a, "plain"_a, "The other way.");

  // Python sees errors of OpenSSL and of certificate files as a ValueError.
  nb::exception<TlsError>(m, "TlsError", PyExc_ValueError);

  m.attr("FAILURES_TO_OPEN") = kFailuresToOpen;
  nb::class_<Breaker>(
      m, "Breaker",
      "Opens after three failures in a row, for 1 s growing to 30 s; then lets one probe "
      "through.\n\n"
      "For any thread. Each `allow()` that was True is followed by one of `succeed`, `fail` or\n"
      "`forgive`. `now`: a monotonic time, for tests.")
      .def(nb::init<>())
      .def(
          "allow",
          [](Breaker& self, std::optional<double> now) { return self.allow(time_or_now(now)); },
          "now"_a = nb::none(),
          "Whether to ask now. The first True after a pause is the probe, and the only one.")
      .def("succeed", &Breaker::succeed)
      .def(
          "fail",
          [](Breaker& self, std::optional<double> now) { return self.fail(0, time_or_now(now)); },
          "now"_a = nb::none(), "Whether this failure opened it, after it was closed.")
      .def("forgive", &Breaker::forgive,
           "The question ended without saying anything of the server; the next one may probe.")
      .def_prop_ro(
          "state", [](const Breaker& self) { return name_of(self.state()); },
          "closed, open or half_open.");

  nb::class_<Keyspace>(m, "Keyspace", "One space's keys in one tenant's buckets. Immutable.")
      .def(nb::new_(&make_keyspace), "space_id"_a, "tag"_a, "buckets"_a,
           "`buckets`: (prefix of block keys, KEYS[1..7] of the functions) of each.");

  nb::class_<CompletionQueue>(m, "CompletionQueue", "Tells of finished transfers, in bursts.")
      .def(nb::new_([] { return std::make_shared<CompletionQueue>(); }))
      .def("fileno", &CompletionQueue::fd, "Readable while something may be taken.")
      .def("take", &CompletionQueue::take, "Serials of finished transfers, claimed now.")
      .def(
          "wait",
          [](CompletionQueue& queue, double until) {
            const nb::gil_scoped_release release;
            return queue.wait(time_from_seconds(until));
          },
          "until"_a, "The same, once there are any; empty after `until` or `stop`.")
      .def("stop", &CompletionQueue::stop)
      .def_prop_ro("stopped", &CompletionQueue::stopped);

  nb::class_<PyBatch>(m, "Batch", "A batch under way. Holds its buffers until it is done.")
      .def_prop_ro("serial", &PyBatch::serial)
      .def("done", &PyBatch::done)
      .def("wait", &PyBatch::wait, "until"_a, "Whether it was done by `until`, a monotonic time.")
      .def("wait_claim", &PyBatch::wait_claim, "until"_a,
           "(done, ours): waits, and claims it then. No queue is told while somebody waits so.")
      .def("claim", &PyBatch::claim, "True for the first caller only: who finishes up.")
      .def("cancel", &PyBatch::cancel, "Ends it soon; `wait` says when its buffers are free.")
      .def("statuses", &PyBatch::statuses, "One byte of `statuses` for each block or command.")
      .def("reply", &PyBatch::reply, "index"_a, "Of a command: bytes are values, str is an error.")
      .def("notify", &PyBatch::notify, "queue"_a)
      .def_prop_ro("trouble", &PyBatch::trouble, "The first error that was met, or empty.");

  nb::class_<PyMatchBatch, PyBatch>(m, "MatchBatch")
      .def("rows", &PyMatchBatch::rows,
           "(status, rows of neve_locate): the prefix that was found, and the miss behind it.");

  nb::class_<PyCore>(m, "Core", "Connections to the servers of one address, and their threads.")
      .def(
          "__init__",
          [](PyCore* self, std::vector<std::string> seeds, std::optional<std::string> username,
             std::optional<std::string> password, std::optional<TlsFields> tls, unsigned io_threads,
             unsigned lanes, std::size_t window_bytes, std::size_t most_bytes,
             double connect_timeout_s, double stall_s) {
            Options options;
            options.io_threads = io_threads;
            options.lanes = lanes;
            options.window_bytes = window_bytes;
            options.most_bytes = most_bytes;
            const auto seconds = [](double s) {
              return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(s));
            };
            options.connect_timeout = seconds(connect_timeout_s);
            options.stall = seconds(stall_s);
            new (self) PyCore{
                std::make_shared<Core>(options, make_address(std::move(seeds), std::move(username),
                                                             std::move(password), std::move(tls)))};
          },
          "seeds"_a, "username"_a = nb::none(), "password"_a = nb::none(), "tls"_a = nb::none(),
          nb::kw_only(), "io_threads"_a = 0, "lanes"_a = Options{}.lanes,
          "window_bytes"_a = Options{}.window_bytes, "most_bytes"_a = Options{}.most_bytes,
          "connect_timeout_s"_a = 1.0, "stall_s"_a = 2.0)
      .def(
          "move_to",
          [](PyCore& self, std::vector<std::string> seeds, std::optional<std::string> username,
             std::optional<std::string> password, std::optional<TlsFields> tls) {
            self.core->readdress(make_address(std::move(seeds), std::move(username),
                                              std::move(password), std::move(tls)));
          },
          "seeds"_a, "username"_a = nb::none(), "password"_a = nb::none(), "tls"_a = nb::none(),
          "Uses other servers or credentials for all that is submitted from now on.")
      .def("get", &PyCore::get, "keys"_a, "ids"_a, "buffers"_a, nb::kw_only(), "deadline"_a,
           "touch"_a = true, "headers"_a = nb::none(),
           "Loads blocks into writable buffers, each as long as its payload, and verifies them.\n\n"
           "`headers` receives 64 bytes for each block that is OK. Raises `ValueError`.")
      .def("put", &PyCore::put, "keys"_a, "ids"_a, "parents"_a, "tokens"_a, "buffers"_a,
           nb::kw_only(), "deadline"_a, "urgency"_a = 1,
           "Stores blocks and commits them. `urgency`: 0 as urgent as loads, 2 after all else.")
      .def("submit", &PyCore::call, "commands"_a, "keys"_a, nb::kw_only(), "deadline"_a,
           "idempotent"_a = false, "Commands, each for the primary that has its key.")
      .def("look_up", &PyCore::match, "keys"_a, "ids"_a, nb::kw_only(), "deadline"_a,
           "A chain: what is stored of it, up to the first miss.")
      .def("close", &PyCore::close)
      .def("counters", &PyCore::counters)
      .def_prop_ro(
          "breaker", [](const PyCore& self) { return name_of(self.core->breaker()); },
          "Of all primaries: open only when none of them would be asked.")
      .def_prop_ro(
          "refuses", [](const PyCore& self) { return self.core->refuses(); },
          "Whether all breakers are open now. Takes no probe.");

  nb::class_<Stop>(m, "Stop", "Ends a read from another thread. One read at a time may have it.")
      .def(nb::init<>())
      .def("stop", &Stop::stop, "What is under way ends soon, what would begin does not.")
      .def_prop_ro("stopped", &Stop::stopped)
      .def(
          "pause", [](Stop& self, double until) { self.pause(time_from_seconds(until)); },
          "until"_a, nb::call_guard<nb::gil_scoped_release>(), "Sleeps, but not beyond `stop`.");

  nb::class_<Answer>(m, "Answer", "What came of a ranged GET.")
      .def_prop_ro(
          "failure", [](const Answer& self) { return nb::str(name_of(self.failure)); },
          "Empty: the server answered. Else address, unreachable, broken, late, stopped.")
      .def_ro("trouble", &Answer::trouble, "The failure in words.")
      .def_prop_ro(
          "status", [](const Answer& self) { return self.head.status; }, "0: none came.")
      .def_ro("fits", &Answer::fits, "206, and the range that was asked for or its beginning.")
      .def_prop_ro("retry_after_s", [](const Answer& self) { return self.head.retry_after_s; })
      .def_prop_ro("date", [](const Answer& self) { return bytes_of(self.head.date); })
      .def_prop_ro(
          "error", [](const Answer& self) { return bytes_of(self.error); },
          "How the body of an answer begins that does not fit; at most 4 KiB.")
      .def_prop_ro(
          "blocks",
          [](const Answer& self) { return nb::bytes(self.blocks.data(), self.blocks.size()); },
          "OK or CORRUPT of `statuses` for each block, as far as they were read.");

  nb::class_<RangedGets>(m, "RangedGets", "Ranged GETs over kept connections. For any thread.")
      .def(nb::init<std::string>(), "ca_file"_a = "",
           "`ca_file`: of who signs the servers' certificates; empty: the host's authorities.")
      .def("get", &get_range, "url"_a, "first"_a, "last"_a, "blocks"_a, nb::kw_only(), "deadline"_a,
           "stop"_a,
           "Reads the bytes `first` … `last`, without the GIL. `blocks`, in order: offset, id,\n"
           "writable memory for header (64 bytes) and payload, codec, and bytes of the encoded\n"
           "payload, which is then decoded; 0: `payload` gets it as it stands. Raises\n"
           "`ValueError`.")
      .def_prop_ro("kept", &RangedGets::kept, "Connections that nobody uses now.")
      .def("close", &RangedGets::close,
           "Ends connections that nobody uses; the others end after their use.");

  nb::class_<PyLocalRead>(m, "LocalRead", "Blocks to read out of files of the local tier, once.")
      .def(nb::init<nb::bytes, const LocalBlocks&>(), "tag"_a, "blocks"_a,
           "`tag`: of the space. `blocks`: path, id and writable memory of the payload of each.")
      .def("run", &PyLocalRead::run, "deadline"_a,
           "Reads and verifies block after block, without the GIL, until `deadline` or `end`.\n\n"
           "Threads that call it share the blocks. True for the one that ended the last block.")
      .def("end", &PyLocalRead::end,
           "`run` writes to no payload any more, even if it hangs in a read of a file.")
      .def("statuses", &PyLocalRead::statuses,
           "OK, EVICTED, CORRUPT, UNAVAILABLE or TIMEOUT of `statuses` for each block.")
      .def_prop_ro("moved_bytes", &PyLocalRead::moved_bytes, "Bytes read so far.")
      .def_prop_ro("trouble", &PyLocalRead::trouble, "The first failure in words, or empty.");
}
