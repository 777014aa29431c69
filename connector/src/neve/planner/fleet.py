"""How many machines, how much memory and network a hit rate takes. Pure arithmetic.

`Traffic`, a `Model`, an LRU curve (`HitCurve`) and `Constants` of machines give a `Fleet`: engines,
Valkey primaries, memory, S3 and network, and which limit is met first as traffic grows. Rates are
averages; machines are counted for `utilisation` of them, so give the rate of the busiest hour.

Invariant: more requests never need less (tests/neve/test_fleet.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from neve.errors import Misuse
from neve.planner.breakeven import Prefill
from neve.planner.parts import PrefixBytes
from neve.planner.prices import Prices

MIB: Final = 1 << 20
GIB: Final = 1 << 30
MOST: Final = 1e15  # of numbers of a curve
_PRICES: Final = Prices()
_MONTH_H: Final = 730
_MAY_BE_0: Final = ("promoted", "rewrites", "engine_cache_tokens")


def _known(default: float, words: str, source: str) -> Any:
    return field(default=default, metadata={"words": words, "source": source})


_CORES16 = "docs/benchmarks.md, 16 cores"
_GPU = "docs/benchmarks.md, on a GPU"


@dataclass(frozen=True)
class Constants:
    """What machines and services do. Each field has its words and its source in its metadata.

    Raises `Misuse` for a value that is not above 0, or a share above 1.
    """

    primary_get_bytes_per_s: float = _known(
        4.56e9, "bytes/s that a primary sends", f"{_CORES16}: one primary, blocks of 2 MiB"
    )
    primary_put_bytes_per_s: float = _known(
        3.32e9, "bytes/s that a primary receives", f"{_CORES16}: one primary, blocks of 2 MiB"
    )
    match_s_per_id: float = _known(
        0.23e-3 / 512, "s of a primary for each block id looked up", f"{_CORES16}: 0.23 ms for 512"
    )
    node_load_bytes_per_s: float = _known(
        14.9e9, "bytes/s that one engine loads from hot", f"{_CORES16}: four primaries"
    )
    load_fixed_s: float = _known(
        0.013, "s of a load beside its bytes", f"{_GPU}: 0.035 s for 2,048 tokens, 0.022 of it load"
    )
    memory_factor: float = _known(
        1.3, "bytes of memory for each byte of hot blocks", "docs/operators.md, NEVE_HOT_MAXMEMORY"
    )
    hot_entry_bytes: float = _known(
        390, "bytes of memory for each hot block's entry", "docs/benchmarks.md, growth"
    )
    cold_entry_bytes: float = _known(
        271,
        "bytes of memory for each cold block's entry",
        "docs/benchmarks.md, growth, with an end",
    )
    primary_ram_bytes: float = _known(128 * GIB, "bytes of memory of a primary", "assumed")
    primaries_per_machine: float = _known(4, "primaries on a machine", "assumed, 16 cores")
    machine_nic_bytes_per_s: float = _known(
        12.5e9, "bytes/s of a Valkey machine's NIC", "assumed, 100 Gbit/s"
    )
    node_nic_bytes_per_s: float = _known(
        12.5e9, "bytes/s of an engine's NIC", "assumed, 100 Gbit/s"
    )
    connections_per_process: float = _known(
        3,
        "connections of an engine process to each primary",
        "connector: two for blocks, one for calls",
    )
    processes_per_engine: float = _known(1, "processes of an engine that connect", "assumed, TP 1")
    connection_limit: float = _known(
        1000, "connections of a tenant to a primary", "docs/operators.md, NEVE_HOT_CONNECTIONS"
    )
    cluster_primaries: float = _known(
        1000, "primaries of a Valkey Cluster at most", "Valkey cluster specification"
    )
    heartbeat_s: float = _known(2, "s between heartbeats", "docs/operators.md, NEVE_HEARTBEAT_S")
    heartbeats_per_core_s: float = _known(
        122, "heartbeats/s of a core of the control plane", "docs/benchmarks.md, many contexts"
    )
    s3_stream_bytes_per_s: float = _known(
        90e6, "bytes/s of one stream from S3", "Amazon S3 user guide: 85–90 MB/s a connection"
    )
    s3_streams: float = _known(
        16, "streams of an engine from S3", "docs/nodes.md, cold_connections"
    )
    s3_range_bytes: float = _known(4 * MIB, "bytes of a ranged GET", "connector: 4 to 16 MiB")
    s3_part_bytes: float = _known(16 * MIB, "bytes of an uploaded part", "platform/tiering")
    s3_gets_per_s: float = _known(5500, "GETs/s of an S3 prefix", "Amazon S3 user guide")
    s3_puts_per_s: float = _known(3500, "PUTs/s of an S3 prefix", "Amazon S3 user guide")
    cold_disk_factor: float = _known(
        2.0, "bytes of disk for each byte of cold blocks, with an S3 of your own",
        "docs/operators.md, what the cold tier takes of the disk",
    )  # fmt: skip
    rewrites: float = _known(1.0, "times that compaction writes a byte again", "assumed")
    worker_s_per_byte: float = _known(
        2.6e-9, "s of a worker's core for each byte flushed and merged once",
        "docs/benchmarks.md, tiering: 1.1 and 1.5 s/GB",
    )  # fmt: skip
    promoted: float = _known(1.0, "share of cold reads written back to hot", "assumed: every one")
    gpus_per_engine: float = _known(1, "GPUs of an engine", "assumed")
    engine_cache_tokens: float = _known(
        0,
        "tokens that an engine's own prefix cache keeps, each user always on one engine",
        "assumed",
    )
    utilisation: float = _known(0.6, "share of a limit that is used at most", "assumed")
    gpu_utilisation: float = _known(0.7, "share of an engine's time in prefill at most", "assumed")

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            most = 1.0 if name in ("utilisation", "gpu_utilisation", "promoted") else math.inf
            least_ok = value >= 0 if name in _MAY_BE_0 else value > 0
            if not (least_ok and value <= most and math.isfinite(value)):
                raise Misuse(f"{value:g} is out of range", field=name)

    @classmethod
    def changed(cls, changes: Mapping[str, float]) -> "Constants":
        """The defaults but for `changes`. Raises `Misuse` for an unknown name."""
        known = {each.name for each in fields(cls)}
        for name in changes:
            if name not in known:
                raise Misuse(f"unknown; known: {', '.join(sorted(known))}", field=name)
        return cls(**changes)


@dataclass(frozen=True)
class HitCurve:
    """LRU's hit rate by capacity, of traffic with `requests_per_s` and `prompt_tokens` a request.

    `points`: (capacity in tokens, hit rate), rising. `name` says where it comes from, `span_s` how
    long the traffic was watched: a return after longer is not in it.
    Raises `Misuse` without points or if they fall.
    """

    points: Sequence[tuple[float, float]]
    requests_per_s: float
    prompt_tokens: float
    span_s: float = 0.0
    name: str = "curve"

    def __post_init__(self) -> None:
        if not self.points:
            raise Misuse("has no points", field="curve")
        if not (0 < self.requests_per_s <= MOST and 0 < self.prompt_tokens <= MOST):
            raise Misuse("needs requests/s and tokens above 0, up to 1e15", field="curve")
        if not (0 <= self.span_s <= MOST and self.points[-1][0] <= MOST):
            raise Misuse("needs seconds and capacities up to 1e15", field="curve")
        before = (0.0, 0.0)
        for each in self.points:
            if each[0] < before[0] or each[1] < before[1] or not 0 <= each[1] <= 1:
                raise Misuse("capacities and hit rates must rise, rates up to 1", field="curve")
            before = each

    @property
    def highest(self) -> float:
        return self.points[-1][1]

    def hit_rate(self, capacity_tokens: float) -> float:
        """Linear between points, 0 at a capacity of 0."""
        low = (0.0, 0.0)
        for high in self.points:
            if capacity_tokens < high[0]:
                return low[1] + (high[1] - low[1]) * (capacity_tokens - low[0]) / (high[0] - low[0])
            low = high
        return low[1]

    def capacity_for(self, hit_rate: float) -> float:
        """Least capacity in tokens. Raises `Misuse` if no capacity gives `hit_rate`."""
        if hit_rate <= 0:
            return 0.0
        low = (0.0, 0.0)
        for high in self.points:
            if high[1] >= hit_rate:
                part = (hit_rate - low[1]) / (high[1] - low[1]) if high[1] > low[1] else 1.0
                return low[0] + (high[0] - low[0]) * part
            low = high
        raise Misuse(
            f"{hit_rate:.1%} is out of reach: {self.name} ends at {self.highest:.1%} with unlimited"
            " capacity",
            field="hit_rate",
        )


@dataclass(frozen=True)
class Traffic:
    """`stored_output_tokens`: of each answer. `hit_rate`: target, hits ÷ prompt tokens."""

    requests_per_s: float
    prompt_tokens: float
    hit_rate: float
    stored_output_tokens: float = 0.0

    def __post_init__(self) -> None:
        for name in ("requests_per_s", "prompt_tokens"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise Misuse("must be above 0", field=name)
        if not 0 <= self.hit_rate < 1:
            raise Misuse("must be at least 0 and below 1", field="hit_rate")
        if self.stored_output_tokens < 0:
            raise Misuse("must not be below 0", field="stored_output_tokens")


@dataclass(frozen=True)
class Model:
    """Bytes are after the codec. `bytes_per_token`: stored; `state_bytes`: of linear layers, stored
    once a request. `block_tokens`: of a stored block. `prefill`: of one engine, whatever its GPUs.
    `load`: what is loaded of a prefix, if less than what is stored (windows); None: all.
    """

    bytes_per_token: float
    block_tokens: int
    prefill: Prefill
    state_bytes: float = 0.0
    load: PrefixBytes | None = None

    def __post_init__(self) -> None:
        if self.bytes_per_token <= 0 or self.block_tokens < 1 or self.state_bytes < 0:
            raise Misuse("must be above 0", field="bytes_per_token")


@dataclass(frozen=True)
class Limit:
    """`need` and `one` in `unit`. `units`: how many of the thing that gives `one` are needed, not
    rounded, after `utilisation`."""

    name: str
    need: float
    one: float
    unit: str
    units: float


@dataclass(frozen=True)
class Fleet:
    """Needs of one traffic. Rates are averages, before `utilisation`.

    `limits`: the one that is met first as traffic grows from nothing comes first.
    `is_hot_worth`, `is_cold_worth`: whether loading the mean cached prefix, without what an engine
    has itself, is faster than computing it. If hot is not, nothing is stored. If cold is not, all
    hits come from hot and nothing is flushed. Prices are per hour: of engines' time that loads
    spare, and of memory, S3 and requests.
    """

    traffic: Traffic
    ttft_s: float  # of the mean prompt, without waiting for other prompts
    ttft_computed_s: float  # the same without Neve
    is_hot_worth: bool
    is_cold_worth: bool
    own_hit_rate: float  # of the engines' own prefix caches
    hot_hit_rate: float
    cold_hit_rate: float
    engines: int
    engines_without: int  # without Neve
    primaries: int
    clusters: int  # of Valkey; each has its own engines and users
    hot_machines: int
    hot_bytes: float
    memory_bytes: float  # of all Valkeys: blocks × `memory_factor`, and the index
    cold_bytes: float
    disk_bytes: float  # of an S3 of your own, NVMe or other
    hot_read_bytes_per_s: float
    hot_written_bytes_per_s: float
    cold_read_bytes_per_s: float
    cold_written_bytes_per_s: float
    s3_gets_per_s: float
    s3_puts_per_s: float
    engine_read_bytes_per_s: float  # of each engine, within its NIC's `utilisation`
    connections_per_primary: int
    heartbeats_per_s: float
    web_cores: int
    worker_cores: int
    spared_per_hour: float
    cost_per_hour: float
    currency: str
    limits: tuple[Limit, ...]


def plan(
    traffic: Traffic,
    model: Model,
    curve: HitCurve,
    constants: Constants,
    *,
    hot_share: float = 0.8,
    ttft_s: float | None = None,
    prices: Prices = _PRICES,
) -> Fleet:
    """The needs of `traffic`. `ttft_s`: target of the mean prompt, by which the hot tier gets as
    small as it allows; without it `hot_share` of the hits come from hot.

    Raises `Misuse` if the curve does not reach the hit rate, or no hot tier the time.
    """
    if not 0 <= hot_share <= 1:
        raise Misuse("must be between 0 and 1", field="hot_share")
    hit, tokens = traffic.hit_rate, traffic.prompt_tokens
    growth = traffic.requests_per_s / curve.requests_per_s * tokens / curve.prompt_tokens
    # Engines grow with the requests, so what their caches hold of the traffic is one share.
    own_tokens = model.prefill.seconds(0, round(tokens)) * constants.engine_cache_tokens
    own_tokens *= curve.requests_per_s * curve.prompt_tokens / tokens / constants.gpu_utilisation
    own = curve.hit_rate(own_tokens)
    whole = max(hit, own)
    cached = (whole - own) * tokens  # loaded
    fresh = tokens * (1 - whole) + traffic.stored_output_tokens
    size = model.bytes_per_token + (model.state_bytes / fresh if fresh else 0.0)
    load = model.load or PrefixBytes(model.bytes_per_token, math.ceil(model.state_bytes))
    loaded = load.of(round(cached)) if cached else 0.0
    computed_s = model.prefill.seconds(round(own * tokens), math.ceil(whole * tokens))
    cold_rate = min(
        constants.s3_stream_bytes_per_s * constants.s3_streams, constants.node_nic_bytes_per_s
    )
    hot_rate = min(constants.node_load_bytes_per_s, constants.node_nic_bytes_per_s)

    def load_s(rate: float) -> float:
        return loaded / rate + constants.load_fixed_s

    is_hot_worth = cached > 0 and load_s(hot_rate) < computed_s
    is_cold_worth = cached > 0 and load_s(cold_rate) < computed_s
    if hit and not is_hot_worth:
        none = plan(replace(traffic, hit_rate=0.0), model, curve, constants, prices=prices)
        return replace(none, traffic=traffic)
    rest_s = model.prefill.seconds(round(whole * tokens), round(tokens))

    def first_token_s(share: float) -> float:
        if not cached:
            return rest_s
        return rest_s + share * load_s(hot_rate) + (1 - share) * load_s(cold_rate)

    if not is_cold_worth:
        hot_share = 1.0
    elif ttft_s is not None:
        hot_share = _least_share(first_token_s, ttft_s)
    if ttft_s is not None and first_token_s(hot_share) > ttft_s * (1 + 1e-9):
        raise Misuse(
            f"{ttft_s:g} s is out of reach: {first_token_s(1.0):.3f} s with every hit from hot,"
            f" {rest_s:.3f} of it to compute the rest",
            field="ttft_s",
        )

    hot_hit, cold_hit = hot_share * (whole - own), (1 - hot_share) * (whole - own)
    if not cached:
        whole_tokens = hot_tokens = 0.0
    else:
        whole_tokens = curve.capacity_for(hit) * growth
        hot_tokens = curve.capacity_for(min(hit, own + hot_hit)) * growth

    rate = traffic.requests_per_s
    written = rate * fresh * size if cached else 0.0
    cold_read = rate * (1 - hot_share) * loaded
    hot_read = rate * hot_share * loaded
    hot_written = written + constants.promoted * cold_read
    if not is_cold_worth:
        whole_tokens = hot_tokens
    cold_tokens = whole_tokens if is_cold_worth else 0.0
    flushed = written if is_cold_worth else 0.0
    cold_written = flushed * (1 + constants.rewrites)
    hot_read += flushed  # the flusher reads each new byte once
    hot_blocks, blocks = hot_tokens / model.block_tokens, whole_tokens / model.block_tokens
    memory = hot_tokens * size * constants.memory_factor + hot_blocks * constants.hot_entry_bytes
    memory += max(0.0, blocks - hot_blocks) * constants.cold_entry_bytes
    looked_up = rate * tokens / model.block_tokens
    busy = hot_read / constants.primary_get_bytes_per_s
    busy += hot_written / constants.primary_put_bytes_per_s + looked_up * constants.match_s_per_id

    all_s = model.prefill.seconds(round(own * tokens), round(tokens))
    spare = constants.utilisation
    computing = rate * rest_s / constants.gpu_utilisation
    loading = (rate * hot_share * loaded / hot_rate + cold_read / cold_rate) / spare
    busy_engines, busy_without = max(computing, loading), rate * all_s / constants.gpu_utilisation
    engines, without = max(1, math.ceil(busy_engines)), max(1, math.ceil(busy_without))
    spared_gpus = max(0.0, busy_without - busy_engines) * constants.gpus_per_engine
    processes = engines * constants.processes_per_engine
    heartbeats = processes / constants.heartbeat_s
    gets, puts = cold_read / constants.s3_range_bytes, cold_written / constants.s3_part_bytes
    wire = max(hot_read, hot_written)
    limits = [
        Limit(
            "RAM",
            memory,
            constants.primary_ram_bytes,
            "bytes",
            memory / constants.primary_ram_bytes,
        ),
        Limit("primary bandwidth", busy, 1.0, "s of a primary each second", busy / spare),
        Limit(
            "NIC of Valkey machines",
            wire,
            constants.machine_nic_bytes_per_s,
            "bytes/s",
            wire / constants.machine_nic_bytes_per_s / spare,
        ),
        Limit("loads of engines", loading * spare, 1.0, "s of an engine each second", loading),
        Limit(
            "S3 requests",
            max(gets, puts),
            constants.s3_gets_per_s if gets > puts else constants.s3_puts_per_s,
            "requests/s",
            max(gets / constants.s3_gets_per_s, puts / constants.s3_puts_per_s) / spare,
        ),
        Limit(
            "heartbeats",
            heartbeats,
            constants.heartbeats_per_core_s,
            "heartbeats/s",
            heartbeats / constants.heartbeats_per_core_s / spare,
        ),
    ]
    units = {each.name: each.units for each in limits}
    machines = math.ceil(max(units["NIC of Valkey machines"], 0.0))
    primaries = max(1, machines, math.ceil(units["RAM"]), math.ceil(units["primary bandwidth"]))
    clusters = math.ceil(primaries / constants.cluster_primaries)
    connections = math.ceil(processes / clusters) * constants.connections_per_process
    limits += [
        Limit(
            "connections",
            connections,
            constants.connection_limit,
            "connections to a primary",
            connections / constants.connection_limit,
        ),
        Limit(
            "size of a cluster",
            primaries,
            constants.cluster_primaries,
            "primaries",
            primaries / constants.cluster_primaries,
        ),
    ]
    return Fleet(
        traffic=traffic,
        ttft_s=first_token_s(hot_share),
        ttft_computed_s=all_s,
        is_hot_worth=is_hot_worth,
        is_cold_worth=is_cold_worth,
        own_hit_rate=own,
        hot_hit_rate=hot_hit,
        cold_hit_rate=cold_hit,
        engines=engines,
        engines_without=without,
        primaries=primaries,
        clusters=clusters,
        hot_machines=max(machines, math.ceil(primaries / constants.primaries_per_machine)),
        hot_bytes=hot_tokens * size,
        memory_bytes=memory,
        cold_bytes=cold_tokens * size,
        disk_bytes=cold_tokens * size * constants.cold_disk_factor,
        hot_read_bytes_per_s=hot_read,
        hot_written_bytes_per_s=hot_written,
        cold_read_bytes_per_s=cold_read,
        cold_written_bytes_per_s=cold_written,
        s3_gets_per_s=gets,
        s3_puts_per_s=puts,
        engine_read_bytes_per_s=rate * loaded / engines,
        connections_per_primary=math.ceil(connections),
        heartbeats_per_s=heartbeats,
        web_cores=max(1, math.ceil(units["heartbeats"])),
        worker_cores=math.ceil(flushed * constants.worker_s_per_byte / spare),
        spared_per_hour=spared_gpus * float(prices.gpu_hour),
        cost_per_hour=memory / GIB * float(prices.hot_gib_hour)
        + cold_tokens * size / GIB * float(prices.cold_gib_month) / _MONTH_H
        + 3.6 * (gets * float(prices.get_1000) + puts * float(prices.put_1000))
        + 3600 * cold_read / 1e9 * float(prices.egress_gb),
        currency=prices.currency,
        limits=tuple(sorted(limits, key=lambda each: -each.units)),
    )


def best_hit_rate(
    traffic: Traffic, model: Model, curve: HitCurve, constants: Constants, **options: Any
) -> float:
    """The hit rate whose spared engine time most exceeds the store's cost by prices; 0: none does.
    Tries 100 up to the curve's highest. `options`: as `plan`'s."""

    def net(hit_rate: float) -> float:
        try:
            one = plan(replace(traffic, hit_rate=hit_rate), model, curve, constants, **options)
        except Misuse:  # the time is out of reach at this hit rate
            return -math.inf
        return one.spared_per_hour - one.cost_per_hour

    tried = [curve.highest * n / 100 for n in range(101)]
    return max(tried, key=net)


def assumptions(constants: Constants) -> list[tuple[str, float, str, str]]:
    """(name, value, words, source) of every constant."""
    changed = {
        each.name for each in fields(constants) if getattr(constants, each.name) != each.default
    }
    return [
        (
            each.name,
            getattr(constants, each.name),
            each.metadata["words"],
            "given" if each.name in changed else each.metadata["source"],
        )
        for each in fields(constants)
    ]


def _least_share(seconds: Any, target_s: float) -> float:
    """Least share of hits from hot for which `seconds(share)` is within the target; 1 if none."""
    if seconds(0.0) <= target_s:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if seconds(middle) <= target_s else (middle, high)
    return high
