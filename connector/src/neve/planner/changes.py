"""Changes of a tenant's tiers to try: parsed from words such as `x2` or `30d`, and applied."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, Self

from neve import typed
from neve.errors import Misuse
from neve.planner.simulate.tiers import Promote, Setting, TierSetting
from neve.typed import parse_seconds

UNLIMITED: Final = "unlimited"
NONE: Final = "none"
MOST_BYTES: Final = 1 << 60
MOST_S: Final = 365 * 86400
MOST_CODEC: Final = 64.0
_SIZE: Final = re.compile(r"([+-]?)(\d{1,12}(?:\.\d{1,6})? ?[KkMGTP]?i?B)", re.ASCII)
_TIMES: Final = re.compile(r"[x×](\d{1,4}(?:\.\d{1,6})?)", re.ASCII)


@dataclass(frozen=True)
class Change:
    """What differs from today; None: as today.

    Sizes (`hot`, `cold`, `local`): `x2`, `+64GiB`, `-1GiB`, `512GiB`; `unlimited`; `none`: without
    that tier (not hot). `local` adds a tier on the nodes' own disks. Durations (`cold_lifetime`,
    `hot_idle`, `promote_window`): `30d`, `6h`, `1h30m`; `unlimited`. `eviction`: of the hot tier, a
    name of `simulate.policies.POLICIES`. `promote`: second, every, never. `codec`: bytes before ÷
    after a codec in hot and cold tiers, such as `2`.
    """

    hot: str | None = None
    cold: str | None = None
    local: str | None = None
    cold_lifetime: str | None = None
    hot_idle: str | None = None
    eviction: str | None = None
    promote: str | None = None
    promote_window: str | None = None
    codec: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """From a JSON object. Raises: Misuse for an unknown member, no member, or not text."""
        for name, value in given.items():
            if name not in CHANGE_NAMES:
                raise Misuse(f"unknown; known are {', '.join(CHANGE_NAMES)}", field=name)
            if not isinstance(value, str) or len(value) > 40:
                raise Misuse("needs to be text of at most 40 characters, such as x2", field=name)
        if not given:
            raise Misuse("is empty: name at least one change", field="change")
        return cls(**given)  # type: ignore[arg-type]  # checked above

    def given(self) -> dict[str, str]:
        """The members that are not None."""
        found = ((name, getattr(self, name)) for name in CHANGE_NAMES)
        return {name: value for name, value in found if value is not None}

    def apply(self, today: Setting) -> Setting:
        """Raises: Misuse with the field."""
        setting = today
        for name, text in self.given().items():
            setting = _APPLY[name](setting, text.strip())
        if setting == today:
            raise Misuse("changes nothing: today it is so already", field=next(iter(self.given())))
        return setting


CHANGE_NAMES: Final = tuple(each.name for each in fields(Change))


def parse_size(text: str, today: int | None, *, field: str) -> int | None:
    """Bytes; None: unlimited. `today`: what `x2` and `+64GiB` start from. Raises: Misuse."""
    if text == UNLIMITED:
        return None
    times, size = _TIMES.fullmatch(text), _SIZE.fullmatch(text)
    if times is None and size is None:
        raise Misuse(f"needs to be such as x2, +64GiB or 512GiB, got {text!r}", field=field)
    is_relative = times is not None or (size is not None and bool(size[1]))
    if is_relative and today is None:
        raise Misuse("is unlimited today, so give a size such as 512GiB", field=field)
    if times is not None:
        found = int((today or 0) * float(times[1]))
    else:
        assert size is not None
        amount = _amount(size[2], field)
        found = {"": amount, "+": (today or 0) + amount, "-": (today or 0) - amount}[size[1]]
    if not 1 <= found <= MOST_BYTES:
        raise Misuse(f"needs to give 1 B to {MOST_BYTES >> 50} PiB", field=field)
    return found


def _amount(text: str, field: str) -> int:
    try:
        return typed.parse_size(text)
    except ValueError as error:
        raise Misuse(str(error), field=field) from None


def parse_span(text: str, *, field: str) -> int | None:
    """Seconds; None: unlimited. Raises: Misuse."""
    if text == UNLIMITED:
        return None
    try:
        seconds = parse_seconds(text)
    except ValueError:
        raise Misuse(
            f"needs to be such as 2w, 30d, 6h or 1h30m, got {text!r}", field=field
        ) from None
    if not 1 <= seconds <= MOST_S:
        raise Misuse("needs to be 1s to 365d", field=field)
    return seconds


def difference(today: Setting, setting: Setting) -> str:
    """What differs, in words: `hot quota 1 TiB → 2 TiB, cold lifetime unlimited → 30 d`."""
    before, after = _facts(today), _facts(setting)
    return ", ".join(
        f"{name} {before[name]} → {after[name]}" for name in before if before[name] != after[name]
    )


def _facts(setting: Setting) -> dict[str, str]:
    cold, local = setting.cold, setting.local
    codec = {each.codec_ratio for each in (setting.hot, cold) if each is not None}
    return {
        "hot quota": size_words(setting.hot.capacity_bytes),
        "cold quota": NONE if cold is None else size_words(cold.capacity_bytes),
        "local tier": NONE if local is None else size_words(local.capacity_bytes),
        "lifetime": span_words(setting.ttl_s),
        "hot idle time": span_words(setting.hot.idle_s),
        "eviction": setting.hot.policy,
        "promotion": str(setting.promote.value),
        "promotion window": span_words(setting.promote_window_s),
        "codec": NONE if codec == {1.0} else ", ".join(f"{each:g} ×" for each in sorted(codec)),
    }


def size_words(size_bytes: int | None) -> str:
    if size_bytes is None:
        return UNLIMITED
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}"


def span_words(seconds: float | None) -> str:
    if seconds is None:
        return UNLIMITED
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit or seconds == unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.0f} s"


def _hot(setting: Setting, text: str) -> Setting:
    size = parse_size(text, setting.hot.capacity_bytes, field="hot")
    return replace(setting, hot=replace(setting.hot, capacity_bytes=size))


def _cold(setting: Setting, text: str) -> Setting:
    if text == NONE:
        return replace(setting, cold=None)
    cold = setting.cold or TierSetting(0, "lru", codec_ratio=setting.hot.codec_ratio)
    size = parse_size(text, cold.capacity_bytes, field="cold")
    return replace(setting, cold=replace(cold, capacity_bytes=size))


def _local(setting: Setting, text: str) -> Setting:
    if text == NONE:
        return replace(setting, local=None)
    local = setting.local or TierSetting(0, "lru")
    size = parse_size(text, local.capacity_bytes, field="local")
    return replace(setting, local=replace(local, capacity_bytes=size))


def _lifetime(setting: Setting, text: str) -> Setting:
    return replace(setting, ttl_s=parse_span(text, field="cold_lifetime"))


def _idle(setting: Setting, text: str) -> Setting:
    return replace(setting, hot=replace(setting.hot, idle_s=parse_span(text, field="hot_idle")))


def _eviction(setting: Setting, text: str) -> Setting:
    if text == "belady":
        raise Misuse("belady knows the future: no tier can do it", field="eviction")
    try:
        return replace(setting, hot=replace(setting.hot, policy=text))
    except Misuse as error:
        raise Misuse(error.detail, field="eviction") from None


def _promote(setting: Setting, text: str) -> Setting:
    if text not in set(Promote):
        raise Misuse(f"needs to be one of {', '.join(Promote)}", field="promote")
    return replace(setting, promote=Promote(text))


def _window(setting: Setting, text: str) -> Setting:
    seconds = parse_span(text, field="promote_window")
    if seconds is None:
        return replace(setting, promote=Promote.EVERY_READ)
    return replace(setting, promote_window_s=seconds)


def _codec(setting: Setting, text: str) -> Setting:
    try:
        ratio = float(text.removeprefix("x"))
    except ValueError:
        ratio = 0.0
    if not 1 / MOST_CODEC <= ratio <= MOST_CODEC:
        raise Misuse(f"needs to be bytes before ÷ after, such as 2, got {text!r}", field="codec")
    cold = setting.cold and replace(setting.cold, codec_ratio=ratio)
    return replace(setting, hot=replace(setting.hot, codec_ratio=ratio), cold=cold)


_APPLY: Final[Mapping[str, Callable[[Setting, str], Setting]]] = {
    "hot": _hot,
    "cold": _cold,
    "local": _local,
    "cold_lifetime": _lifetime,
    "hot_idle": _idle,
    "eviction": _eviction,
    "promote": _promote,
    "promote_window": _window,
    "codec": _codec,
}


# What a recommendation tries, each alone.
CANDIDATES: Final = tuple(
    Change(**given)
    for given in (
        *({"hot": size} for size in ("x0.5", "x1.5", "x2", "x4")),
        *({"cold": size} for size in ("x0.5", "x2")),
        *({"eviction": name} for name in ("lru", "2q")),
        *({"cold_lifetime": span} for span in ("7d", "30d", UNLIMITED)),
        {"hot_idle": UNLIMITED},
        {"promote": "never"},
    )
)


def candidates(today: Setting) -> list[Change]:
    """Those of `CANDIDATES` that would change something."""
    found = []
    for change in CANDIDATES:
        try:
            change.apply(today)
        except Misuse:
            continue
        found.append(change)
    return found
