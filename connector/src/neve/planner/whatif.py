"""What another quota, policy, lifetime, codec or tier would give a tenant, against today.

`compare` plays sampled traffic on the tiers as they are and as each change makes them
(`neve.planner.simulate.tiers`), scales the counts to the whole traffic, and prices them by the
formula of savings. `recommend` chooses from a comparison. Pure: no clock, no I/O; the same input
gives the same output.

Errors are half widths of 95 % intervals, from GROUPS random parts of the sampled blocks that are
played one by one. They cover the sampling of this window, not that other weeks have other traffic.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from statistics import stdev
from typing import Any, Final

from neve.errors import Misuse
from neve.planner.changes import Change, difference, span_words
from neve.planner.prices import Prices
from neve.planner.savings import Used, savings
from neve.planner.simulate import tiers
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.tiers import Result, Setting, TierSetting

MONTH_S: Final = 30 * 86400
GROUPS: Final = 8
T_95: Final = 2.365  # Student's t at 97.5 % with GROUPS - 1 degrees of freedom
# Fewer sampled reads or less time than this show too little of the traffic for a recommendation.
LEAST_READS: Final = 2_000
LEAST_COUNTED_S: Final = 900
LEAST_HOT_BLOCKS: Final = 100
LEAST_GAIN: Final = 0.01  # of the prefill that today's hits spare
# Simulation and measurement may differ by so much beside the sampling error: flushes, expiry and
# counts of nodes are minutes apart.
CALIBRATION_POINTS: Final = 0.01
CURVE: Final = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # hot sizes ÷ today's


@dataclass(frozen=True)
class Traffic:
    """Requests in order of time, with the sampled blocks of each; `rate` of all blocks is sampled.

    Only requests from `count_from_s` on are counted; those before fill the tiers. `asked_blocks`:
    all blocks of the counted requests, sampled or not; None: unknown.
    """

    requests: Sequence[BlockRequest]
    rate: float
    count_from_s: float
    asked_blocks: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise Misuse(f"needs to be above 0 and at most 1, got {self.rate}", field="rate")

    @property
    def counted(self) -> Sequence[BlockRequest]:
        return [each for each in self.requests if each.at_s >= self.count_from_s]

    @property
    def counted_s(self) -> float:
        """From the first counted moment to the last request."""
        return max(0.0, self.requests[-1].at_s - self.count_from_s) if self.requests else 0.0

    def group(self, number: int) -> "Traffic":
        """One of GROUPS random parts of the blocks."""
        parts = []
        for each in self.requests:
            ids = tuple(id_ for id_ in each.ids if mixed(id_) % GROUPS == number)
            if ids:
                parts.append(replace(each, ids=ids))
        return replace(self, requests=parts, rate=self.rate / GROUPS)

    def thinned(self, most_reads: int) -> "Traffic":
        """The same with half of the blocks, as often as needed to have at most `most_reads`."""
        thin = self
        while (reads := sum(len(each.ids) for each in thin.requests)) > most_reads and reads:
            kept = []
            bit = 1 << (32 + round(math.log2(self.rate / thin.rate)))
            for each in thin.requests:
                ids = tuple(id_ for id_ in each.ids if mixed(id_) & bit)
                if ids:
                    kept.append(replace(each, ids=ids))
            thin = replace(thin, requests=kept, rate=thin.rate / 2)
        return thin


@dataclass(frozen=True)
class Economics:
    """What a hit is worth, in GPU seconds: seconds × GPUs of the engine.

    `prefill_gpu_s_per_token`: measured prefill that one hit token spares; None: unknown.
    `load_gpu_s_per_token`: measured wait per loaded token, by tier. Hits of a tier without it, or
    with a load no faster than prefill, spare nothing. `segment_bytes`: of one S3 object, for the
    number of PUT requests. `gets_per_hit`: GET requests for each cold hit; nodes fetch neighbours
    together. `basis`: where the prefill figure comes from, in words.
    """

    prices: Prices
    block_tokens: int
    prefill_gpu_s_per_token: float | None
    load_gpu_s_per_token: Mapping[str, float] = field(default_factory=dict)
    segment_bytes: int = 256 << 20
    gets_per_hit: float = 1.0
    basis: str = ""

    def is_faster(self, tier: str) -> bool:
        load_s = self.load_gpu_s_per_token.get(tier)
        prefill_s = self.prefill_gpu_s_per_token
        return load_s is not None and prefill_s is not None and load_s < prefill_s


@dataclass(frozen=True)
class Measured:
    """Counts of the same tenant and time as the counted traffic, as nodes reported them."""

    requested_blocks: int
    hit_blocks: Mapping[str, int]
    misses: Mapping[str, int] = field(default_factory=dict)

    @property
    def hit_rate(self) -> float | None:
        asked = self.requested_blocks
        return sum(self.hit_blocks.values()) / asked if asked else None


@dataclass(frozen=True)
class Estimate:
    """A figure and the half width of its 95 % interval."""

    value: float
    error: float


Figures = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """One setting. `figures`: name → estimate of the whole traffic; `against`: the same minus
    today's, with the error of the difference. Names: `hit_rate`, `hit_rate.<tier>`,
    `held_bytes.<tier>`, `read_bytes.<tier>`, `written_bytes.<tier>` (the last two a month),
    `gpu_s`, and `money.<part>`, a month. `notes`: what this estimate cannot show. `is_priced`:
    whether its money has all costs."""

    change: Change | None
    setting: Setting
    words: str
    figures: Mapping[str, Estimate]
    against: Mapping[str, Estimate]
    notes: tuple[str, ...] = ()
    is_priced: bool = True

    def value(self, name: str) -> float:
        return self.figures[name].value


@dataclass(frozen=True)
class Calibration:
    """The simulation of today against the measurement. `is_good` None: nothing was measured."""

    simulated: Estimate
    measured: float | None
    measured_tiers: Mapping[str, float]
    allowed: float
    is_good: bool | None
    words: str


@dataclass(frozen=True)
class Comparison:
    """`reads`, `blocks`: sampled block reads that count, and distinct sampled blocks of them."""

    today: Outcome
    changes: tuple[Outcome, ...]
    curve: tuple[Outcome, ...]
    calibration: Calibration
    start_s: float
    end_s: float
    warm_up_s: float
    reads: int
    blocks: int
    rate: float
    economics: Economics


@dataclass(frozen=True)
class Recommendation:
    """`change`: place in the comparison's changes; None: nothing worth doing. `reason`: a code."""

    change: int | None
    reason: str
    words: str


def mixed(id_: int) -> int:
    """A block id's bits, well mixed. Source: the finaliser of splitmix64 (Steele et al., 2014)."""
    z = (id_ + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


def compare(
    today: Setting,
    changes: Sequence[Change],
    traffic: Traffic,
    economics: Economics,
    *,
    measured: Measured | None = None,
    curve: Sequence[float] = (),
    progress: Callable[[float], None] = lambda fraction: None,
) -> Comparison:
    """Plays `traffic` on `today` and on today with each change.

    `curve`: further hot sizes to play, as multiples of today's. `progress` gets 0 to 1 and may
    raise. Raises: Misuse for traffic without a counted read, or a change without sense (`field`:
    `changes[2].hot`).
    """
    counted = traffic.counted
    reads = sum(len(each.ids) for each in counted)
    if not reads:
        raise Misuse("no sampled read lies in the window", field="traffic")
    hot = today.hot.capacity_bytes
    sizes = [int(hot * share) for share in curve] if hot else []
    settings: list[tuple[Change | None, Setting]] = [(None, today)]
    for place, change in enumerate(changes):
        try:
            settings.append((change, change.apply(today)))
        except Misuse as error:
            raise Misuse(error.detail, field=f"changes[{place}].{error.field}") from None
    settings += [(None, _with_hot(today, size)) for size in sizes]
    player = _Player(traffic, economics, len(settings), progress)
    played = [player.play(setting) for _, setting in settings]
    outcomes = [
        _outcome(change, today, setting, each, played[0], traffic)
        for (change, setting), each in zip(settings, played, strict=True)
    ]
    progress(1.0)
    first = outcomes[0]
    ids = {id_ for each in counted for id_ in each.ids}
    return Comparison(
        today=first,
        changes=tuple(outcomes[1 : 1 + len(changes)]),
        curve=tuple(outcomes[1 + len(changes) :]),
        calibration=calibrate(first, measured),
        start_s=traffic.count_from_s,
        end_s=traffic.requests[-1].at_s,
        warm_up_s=max(0.0, traffic.count_from_s - traffic.requests[0].at_s),
        reads=reads,
        blocks=len(ids),
        rate=traffic.rate,
        economics=economics,
    )


def _with_hot(setting: Setting, size_bytes: int) -> Setting:
    return replace(setting, hot=replace(setting.hot, capacity_bytes=size_bytes))


def calibrate(today: Outcome, measured: Measured | None) -> Calibration:
    """Holds the simulated hit rate of today against the measured one."""
    simulated = today.figures["hit_rate"]
    allowed = simulated.error + CALIBRATION_POINTS
    rate = measured.hit_rate if measured else None
    if measured is None or rate is None:
        words = "No node reported look-ups in this window, so the simulation cannot be checked."
        return Calibration(simulated, None, {}, allowed, None, words)
    asked = measured.requested_blocks
    by_tier = {tier: blocks / asked for tier, blocks in measured.hit_blocks.items()}
    gap = simulated.value - rate
    is_good = abs(gap) <= allowed
    words = (
        f"The simulation of today hits {simulated.value:.1%} (± {simulated.error:.1%}), nodes "
        f"measured {rate:.1%}"
    )
    if is_good:
        return Calibration(simulated, rate, by_tier, allowed, True, f"{words}: they agree.")
    words += f": {abs(gap) * 100:.1f} points apart, more than the error of {allowed * 100:.1f}."
    named = {reason: n for reason, n in measured.misses.items() if reason in UNSIMULATED and n}
    if gap > 0 and named:
        worst = max(named, key=lambda reason: named[reason])
        share = named[worst] / asked
        words += f" The simulation does not know misses of the kind {worst} ({share:.1%})."
    return Calibration(simulated, rate, by_tier, allowed, False, words)


# Reasons of misses that no quota or policy explains.
UNSIMULATED: Final = frozenset(
    (
        *("quota", "fingerprint", "timeout", "breaker", "corrupt", "clock", "denied"),
        *("store_away", "unsupported"),
    )
)


def recommend(comparison: Comparison) -> Recommendation:
    """The change with the largest net gain; of those no worse by more than the error, the one that
    costs least."""
    counted_s = comparison.end_s - comparison.start_s
    if comparison.reads < LEAST_READS or counted_s < LEAST_COUNTED_S:
        return _nothing(
            "too_few_samples",
            f"{comparison.reads:,} sampled reads in {span_words(counted_s)} say too little; "
            f"{LEAST_READS:,} reads in {span_words(LEAST_COUNTED_S)} are needed.",
        )
    if not comparison.calibration.is_good:
        return _nothing("not_calibrated", comparison.calibration.words)
    if comparison.economics.prefill_gpu_s_per_token is None:
        return _nothing(
            "no_prefill_speed",
            "No engine has reported its prefill speed in this window, so a hit has no known worth.",
        )
    net = [
        (place, each.against["money.net"])
        for place, each in enumerate(comparison.changes)
        if each.is_priced
    ]
    if not net:
        return _nothing("no_change", "No change was tried.")
    best = max(net, key=lambda each: each[1].value)[1]
    if best.value <= 0:
        return _nothing(
            "costs_more",
            "Every change that was tried costs at least as much as it saves.",
        )
    if best.value <= best.error:
        return _nothing(
            "below_error",
            f"The largest gain, {best.value:.2f} {comparison.economics.prices.currency} a month, "
            f"is within the error of ± {best.error:.2f}.",
        )
    worth = LEAST_GAIN * comparison.today.value("money.prefill")
    if best.value < worth:
        return _nothing(
            "too_small",
            f"The largest gain, {best.value:.2f} {comparison.economics.prices.currency} a month, "
            f"is less than {LEAST_GAIN:.0%} of the prefill that hits spare.",
        )
    near = [
        (place, gain)
        for place, gain in net
        if gain.value > max(gain.error, worth) and gain.value >= best.value - best.error
    ]
    place, gain = min(near, key=lambda each: _cost(comparison.changes[each[0]]))
    chosen, currency = comparison.changes[place], comparison.economics.prices.currency
    hits = chosen.against["hit_rate"]
    return Recommendation(
        place,
        "worth_it",
        f"{chosen.words}: {gain.value:+.2f} ± {gain.error:.2f} {currency} a month, "
        f"{hits.value * 100:+.1f} ± {hits.error * 100:.1f} points of hit rate.",
    )


def _nothing(reason: str, words: str) -> Recommendation:
    return Recommendation(None, reason, f"Nothing worth doing. {words}")


def _cost(outcome: Outcome) -> float:
    """What a change adds to the bill."""
    return sum(outcome.against[f"money.{part}"].value for part in ("hot", "cold", "requests"))


class _Player:
    """Plays one setting after the other on the whole traffic and on its groups."""

    def __init__(
        self,
        traffic: Traffic,
        economics: Economics,
        settings: int,
        progress: Callable[[float], None],
    ) -> None:
        self._traffic = traffic
        self._groups = [traffic.group(n) for n in range(GROUPS)] if traffic.rate < 1 else []
        self._economics = economics
        self._left = self._all = settings * (1 + len(self._groups))
        self._progress = progress

    def play(self, setting: Setting) -> tuple[Figures, list[Figures]]:
        """Figures of the whole traffic, estimated from all samples and from each group."""
        return self._one(setting, self._traffic), [self._one(setting, g) for g in self._groups]

    def _one(self, setting: Setting, traffic: Traffic) -> Figures:
        self._left -= 1
        self._progress(1.0 - (self._left + 1) / self._all)
        played = tiers.run(
            scaled(setting, traffic.rate), traffic.requests, count_from_s=traffic.count_from_s
        )
        return figures_of(played, setting, traffic, self._economics)


def scaled(setting: Setting, rate: float) -> Setting:
    """The same tiers for a `rate` of the blocks: capacities × rate, at least one block."""

    def tier(one: TierSetting) -> TierSetting:
        if one.capacity_bytes is None:
            return one
        size = max(math.ceil(setting.block_bytes / one.codec_ratio), int(one.capacity_bytes * rate))
        return replace(one, capacity_bytes=size)

    return replace(
        setting,
        hot=tier(setting.hot),
        cold=setting.cold and tier(setting.cold),
        local=setting.local and tier(setting.local),
    )


def figures_of(played: Result, setting: Setting, traffic: Traffic, economics: Economics) -> Figures:
    """Counts of sampled blocks, scaled to the whole traffic; sums and money of a month of it."""
    scale = 1.0 / traffic.rate
    asked = played.asked_blocks * scale
    hits = {name: tier.hit_blocks * scale for name, tier in played.tiers.items()}
    if traffic.asked_blocks is not None and traffic.rate < 1:
        # The blocks that are read most are few: whether they are sampled changes hits, hardly
        # misses. So count misses, and take the exact number of reads. Source: SHARDS-adj, FAST'15.
        hits["hot"] = max(0.0, hits["hot"] + traffic.asked_blocks - asked)
        asked = traffic.asked_blocks
    a_month = MONTH_S / traffic.counted_s if traffic.counted_s else 0.0
    found: Figures = {"hit_rate": min(1.0, sum(hits.values()) / asked) if asked else 0.0}
    spared_s = load_s = 0.0
    for name, tier in played.tiers.items():
        found[f"hit_rate.{name}"] = hits[name] / asked if asked else 0.0
        found[f"held_bytes.{name}"] = tier.mean_bytes * scale
        found[f"read_bytes.{name}"] = tier.read_bytes * scale * a_month
        found[f"written_bytes.{name}"] = tier.written_bytes * scale * a_month
        if economics.is_faster(name):
            tokens = hits[name] * economics.block_tokens
            spared_s += tokens * (economics.prefill_gpu_s_per_token or 0.0)
            load_s += tokens * economics.load_gpu_s_per_token[name]
    cold = played.tiers.get("cold")
    capacity = setting.hot.capacity_bytes
    hot_bytes = found["held_bytes.hot"] if capacity is None else float(capacity)
    used = Used(
        spared_gpu_us=round(spared_s * a_month * 1e6),
        load_gpu_us=round(load_s * a_month * 1e6),
        hot_kib_s=round(hot_bytes / 1024 * MONTH_S),
        cold_kib_s=round(found["held_bytes.cold"] / 1024 * MONTH_S) if cold else 0,
        puts=round(found["written_bytes.cold"] / economics.segment_bytes) if cold else 0,
        gets=round(hits["cold"] * a_month * economics.gets_per_hit) if cold else 0,
        egress_bytes=round(found["read_bytes.cold"]) if cold else 0,
    )
    money = savings(used, economics.prices, month_s=MONTH_S)
    found["gpu_s"] = spared_s * a_month
    found |= {f"money.{each.name}": float(getattr(money, each.name)) for each in fields(money)}
    return found | {"money.net": float(money.net)}


def _outcome(
    change: Change | None,
    today: Setting,
    setting: Setting,
    played: tuple[Figures, list[Figures]],
    base: tuple[Figures, list[Figures]],
    traffic: Traffic,
) -> Outcome:
    whole, groups = played
    names = {*whole, *base[0]}  # a tier that one of them lacks has 0 of everything
    differences = [
        {name: group.get(name, 0.0) - other.get(name, 0.0) for name in names}
        for group, other in zip(groups, base[1], strict=True)
    ]
    return Outcome(
        change=change,
        setting=setting,
        words=difference(today, setting) or "today",
        figures={name: Estimate(whole[name], _error(name, groups, traffic)) for name in whole},
        against={
            name: Estimate(
                whole.get(name, 0.0) - base[0].get(name, 0.0), _error(name, differences, traffic)
            )
            for name in names
        },
        notes=_notes(today, setting, traffic),
        is_priced=setting.local is None or setting.local == today.local,
    )


def _error(name: str, groups: Sequence[Figures], traffic: Traffic) -> float:
    """Half width of the 95 % interval of the mean of the groups; 0 if all blocks are sampled."""
    if not groups:
        return 0.0
    values = [group[name] for group in groups]
    return T_95 * stdev(values) / math.sqrt(GROUPS) * math.sqrt(1.0 - traffic.rate)


def _notes(today: Setting, setting: Setting, traffic: Traffic) -> tuple[str, ...]:
    notes = []
    seen_s = traffic.requests[-1].at_s - traffic.requests[0].at_s
    before_s, after_s = today.ttl_s, setting.ttl_s
    spans = {
        "lifetime": (before_s, after_s),
        "hot idle time": (today.hot.idle_s, setting.hot.idle_s),
    }
    for name, (before, after) in spans.items():
        longest = max((each for each in (before, after) if each is not None), default=None)
        is_unseen = longest is not None and longest > seen_s
        if before != after and (is_unseen or None in (before, after)):
            notes.append(
                f"The samples cover {span_words(seen_s)}: a {name} beyond that has effects that "
                "they do not show."
            )
    if before_s != after_s and traffic.rate < 1:
        notes.append(
            "A lifetime ends the beginning of a chat before its end, which samples show in part: "
            "the hit rate may be a point too high."
        )
    codecs = {each.codec_ratio for each in (setting.hot, setting.cold) if each is not None}
    if setting.hot.codec_ratio != today.hot.codec_ratio and codecs != {1.0}:
        notes.append(
            "The codec's ratio is taken from you, not measured; its time and its effect on answers "
            "are not counted."
        )
    if setting.local is not None and setting.local != today.local:
        notes.append("Disks of nodes have no price here, so the money lacks them.")
    capacity = setting.hot.capacity_bytes
    blocks = None if capacity is None else capacity * traffic.rate / setting.block_bytes
    if blocks is not None and blocks < LEAST_HOT_BLOCKS:
        notes.append(f"The hot tier holds only {blocks:.0f} sampled blocks: a rough estimate.")
    return tuple(notes)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """JSON values, for `Job.detail` and REST. Money in the currency of the prices, a month."""
    economics, calibration = comparison.economics, comparison.calibration
    return {
        "window": {
            "from_s": comparison.start_s,
            "to_s": comparison.end_s,
            "warm_up_s": comparison.warm_up_s,
        },
        "samples": {
            "rate": comparison.rate,
            "reads": comparison.reads,
            "blocks": comparison.blocks,
        },
        "calibration": {
            "simulated": _pair(calibration.simulated),
            "measured": calibration.measured,
            "measured_tiers": dict(calibration.measured_tiers),
            "allowed": calibration.allowed,
            "is_good": calibration.is_good,
            "words": calibration.words,
        },
        "economics": {
            "prices": {
                each.name: _plain(getattr(economics.prices, each.name))
                for each in fields(economics.prices)
            },
            "block_tokens": economics.block_tokens,
            "prefill_gpu_s_per_token": economics.prefill_gpu_s_per_token,
            "load_gpu_s_per_token": dict(economics.load_gpu_s_per_token),
            "gets_per_hit": economics.gets_per_hit,
            "basis": economics.basis,
        },
        "today": _outcome_dict(comparison.today),
        "changes": [_outcome_dict(each) for each in comparison.changes],
        "curve": [
            {
                "hot_bytes": each.setting.hot.capacity_bytes,
                **{
                    name: _pair(estimate)
                    for name, estimate in each.figures.items()
                    if name.startswith("hit_rate")
                },
            }
            for each in comparison.curve
        ],
    }


def _plain(price: Decimal | str) -> str:
    """A price without zeros at its end; the currency as it is."""
    return price if isinstance(price, str) else f"{price.normalize():f}"


def _pair(estimate: Estimate) -> dict[str, float]:
    """Six digits: more would say more than is known."""
    return {name: float(f"{value:.6g}") for name, value in asdict(estimate).items()}


def _outcome_dict(outcome: Outcome) -> dict[str, Any]:
    return {
        "change": outcome.change.given() if outcome.change else None,
        "words": outcome.words,
        "setting": setting_dict(outcome.setting),
        "figures": {name: _pair(each) for name, each in sorted(outcome.figures.items())},
        "against": {name: _pair(each) for name, each in sorted(outcome.against.items())},
        "notes": list(outcome.notes),
        "is_priced": outcome.is_priced,
    }


def setting_dict(setting: Setting) -> dict[str, Any]:
    """A setting as JSON values; `setting_of` reads it."""
    return asdict(setting) | {"promote": str(setting.promote.value)}


def setting_of(given: Mapping[str, Any]) -> Setting:
    """The setting of `setting_dict`. Raises: Misuse, TypeError for anything else."""
    parts = {
        name: TierSetting(**given[name]) if given.get(name) is not None else None
        for name in ("hot", "cold", "local")
    }
    return Setting(**{**given, **parts, "promote": tiers.Promote(given["promote"])})
