"""Which segments move where, and what it costs. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, auto
from typing import Final

from tiering.upload import PART_BYTES

ZERO: Final = Decimal(0)
_GIB, _GB = Decimal(1 << 30), Decimal(10**9)
DAYS_A_MONTH: Final = 30
STAYS_S: Final = 3600.0  # after a move, so that two rules do not carry a segment to and fro
KEPT_HEAT: Final = 0.5  # a copy stays while its segment has this share of the heat that made it


@dataclass(frozen=True)
class StorePrices:
    """Of one store, in the platform's currency."""

    gib_month: Decimal = ZERO
    put_1000: Decimal = ZERO
    get_1000: Decimal = ZERO
    egress_gb: Decimal = ZERO


@dataclass(frozen=True)
class Facts:
    """A segment as rules see it. `store` None: the default. `copies`: stores that have one, too.

    `idle_s`: since a node asked for its address, or since it was written. `stayed_s`: since
    its last move; infinite: it never moved. `reads_a_month`, `read_bytes_a_month`: of nodes, as
    observed.
    """

    number: int
    size_bytes: int
    store: int | None
    age_s: float
    idle_s: float
    heat: float
    stayed_s: float
    copies: frozenset[int | None] = frozenset()
    reads_a_month: float = 0.0
    read_bytes_a_month: float = 0.0


@dataclass(frozen=True)
class Rule:
    """`source` is meaningless with `from_any`. Conditions that are None do not count."""

    name: str
    target: int | None
    source: int | None = None
    from_any: bool = False
    is_copy: bool = False
    least_age_s: float | None = None
    least_idle_s: float | None = None
    least_heat: float | None = None
    payback_days: int | None = None

    def fits(self, facts: Facts, *, share_of_heat: float = 1.0) -> bool:
        """Whether the segment is old, idle and warm enough, wherever it is."""
        return (
            (self.least_age_s is None or facts.age_s >= self.least_age_s)
            and (self.least_idle_s is None or facts.idle_s >= self.least_idle_s)
            and (self.least_heat is None or facts.heat >= self.least_heat * share_of_heat)
        )


@dataclass(frozen=True)
class Move:
    """`cost`: of requests and bytes out, once. `saved_a_month`: of storage and of nodes' reads;
    negative if the target costs more."""

    number: int
    size_bytes: int
    source: int | None
    target: int | None
    is_copy: bool
    reason: str
    cost: Decimal
    saved_a_month: Decimal


class Stay(Enum):
    """Why a segment stays where it is."""

    UNFIT = auto()  # in another store than rules name, or not old, idle or warm enough
    COPIED = auto()  # the target has a copy
    RESTING = auto()  # moved within STAYS_S
    UNPAID = auto()  # does not pay back in time


def decide(
    facts: Facts, rules: Sequence[Rule], prices: Mapping[int | None, StorePrices]
) -> Move | Stay:
    """By the first rule that fits; or why the segment stays, by the last rule that fits."""
    stay = Stay.UNFIT
    for rule in rules:
        found = _judge(facts, rule, prices)
        if isinstance(found, Move) or found is Stay.RESTING:
            return found
        if found is not Stay.UNFIT:
            stay = found
    return stay


def _judge(facts: Facts, rule: Rule, prices: Mapping[int | None, StorePrices]) -> Move | Stay:
    is_from = rule.from_any or rule.source == facts.store
    if not is_from or facts.store == rule.target or not rule.fits(facts):
        return Stay.UNFIT
    if rule.is_copy and rule.target in facts.copies:
        return Stay.COPIED
    if not rule.is_copy and facts.stayed_s < STAYS_S:
        return Stay.RESTING
    move = _priced(facts, rule, prices)
    if rule.payback_days is not None and not rule.is_copy:
        saved = move.saved_a_month * rule.payback_days / DAYS_A_MONTH
        if move.saved_a_month <= 0 or saved < move.cost:
            return Stay.UNPAID
    return move


def keeps(facts: Facts, rules: Sequence[Rule], store: int | None) -> bool:
    """Whether a copy in this store stays."""
    return any(
        rule.is_copy
        and rule.target == store
        and (rule.from_any or rule.source == facts.store)
        and rule.fits(facts, share_of_heat=KEPT_HEAT)
        for rule in rules
    )


def _priced(facts: Facts, rule: Rule, prices: Mapping[int | None, StorePrices]) -> Move:
    source, target = prices[facts.store], prices[rule.target]
    parts = -(-facts.size_bytes // PART_BYTES)
    puts = 1 if parts <= 1 else parts + 2  # begin and end of a multipart upload
    gets = parts + 2  # the footer, here and there
    cost = (
        puts * target.put_1000 / 1000
        + gets * source.get_1000 / 1000
        + facts.size_bytes / _GB * source.egress_gb
    )
    before = ZERO if rule.is_copy else source.gib_month
    reads, read_bytes = Decimal(facts.reads_a_month), Decimal(facts.read_bytes_a_month)
    saved = (
        facts.size_bytes / _GIB * (before - target.gib_month)
        + reads * (source.get_1000 - target.get_1000) / 1000
        + read_bytes / _GB * (source.egress_gb - target.egress_gb)
    )
    return Move(
        facts.number, facts.size_bytes, facts.store, rule.target, rule.is_copy, rule.name, cost,
        saved,
    )  # fmt: skip
