"""Moves of segments between stores with their money: the work of a tick, and dry runs of rules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Final

from django.db.models import Count, Sum

from catalog.models import MoveRule, Segment, SegmentCopy, Store
from catalog.stores import Stores
from catalog.targets import Opener, Target, active_ids, active_tenants
from planning import prices
from planning.models import PriceVersion
from tenants.scope import tenant_scope
from tiering.moving.plan import Rule, Stay, StorePrices
from tiering.moving.run import Mover, MoveReport, decided, rule_of, rules_of

PRICES: Final = ("gib_month", "put_1000", "get_1000", "egress_gb")
MOST_LOOKED_AT: Final = 100_000  # segments of a dry run


def prices_of(row: Store, platform: PriceVersion) -> StorePrices:
    """Its own, or the platform's."""
    own = {name: getattr(row, name) for name in PRICES}
    common = {name: getattr(platform, name) for name in PRICES[1:]}
    common["gib_month"] = platform.cold_gib_month
    return StorePrices(
        **{name: common[name] if value is None else value for name, value in own.items()}
    )


def all_prices(
    stores: Stores, platform: PriceVersion | None = None
) -> dict[int | None, StorePrices]:
    """At the prices of today, or those of `platform`. One query without it."""
    platform = platform or prices.in_force(prices.today())
    return {store_id: prices_of(row, platform) for store_id, row in stores.rows.items()}


def tenants_with_moves() -> list[Target]:
    """None without rules and copies: then no tenant's segments are looked at."""
    is_idle = not (
        MoveRule.objects.filter(is_active=True).exists() or SegmentCopy.unscoped.exists()
    )
    return [] if is_idle else active_tenants()


def work(job: Opener, tenant_id: int) -> None:
    """Move segments between stores by rules, and delete old places. No Job row if none is due."""
    mover = Mover(tenant_id, all_prices(Stores()))
    if job.is_waiting() or not mover.has_work():
        return
    with job() as run:

        def show(report: MoveReport) -> None:
            run.progress(0.5, bytes_=report.bytes)
            run.detail(vars(report))

        show(mover.run(progress=show))


@dataclass
class Estimate:
    """Of one way between two stores. `saved_a_month`: negative if it costs more.

    `seconds`: at the target's bound of bytes a second. `away`: its stores that do not answer, by
    name; until they do, it waits.
    """

    rule: str
    source: str
    target: str
    segments: int = 0
    bytes: int = 0
    cost: Decimal = Decimal(0)
    saved_a_month: Decimal = Decimal(0)
    seconds: float = 0.0
    away: list[str] = field(default_factory=list)


@dataclass
class DryRun:
    """`is_whole`: all segments were looked at. `fitting`: those that meet a rule's conditions but
    the payback; `stays`: why some of them do not move."""

    currency: str
    ways: list[Estimate] = field(default_factory=list)
    is_whole: bool = True
    fitting: int = 0
    stays: Counter[Stay] = field(default_factory=Counter)

    @property
    def unpaid(self) -> int:
        return self.stays[Stay.UNPAID]

    @property
    def resting(self) -> int:
        return self.stays[Stay.RESTING]

    @property
    def copied(self) -> int:
        return self.stays[Stay.COPIED]


def dry_run(extra: Sequence[Rule] | None = None, *, only_tenant: int | None = None) -> DryRun:
    """What would move now, by the active rules or by `extra` only, of all active tenants or one."""
    stores = Stores()
    known = all_prices(stores)
    found: dict[tuple[str, int | None, int | None], Estimate] = {}
    run, left = DryRun(prices.in_force(prices.today()).currency), MOST_LOOKED_AT
    for tenant_id in active_ids() if only_tenant is None else [only_tenant]:
        rules = rules_of(tenant_id, stores) if extra is None else extra
        with tenant_scope(tenant_id):
            for move in islice(decided(rules, known), left):
                left -= 1
                run.fitting += move is not Stay.UNFIT
                if isinstance(move, Stay):
                    run.stays[move] += 1
                    continue
                key = (move.reason, move.source, move.target)
                way = found.setdefault(
                    key, Estimate(move.reason, stores.name(move.source), stores.name(move.target))
                )
                way.away = [
                    stores.name(each)
                    for each in (move.source, move.target)
                    if not stores.is_well(each)
                ]
                way.segments += 1
                way.bytes += move.size_bytes
                way.cost += move.cost
                way.saved_a_month += move.saved_a_month
    run.is_whole = left > 0
    run.ways = list(found.values())
    speeds = {row.name: row.move_bytes_per_s for row in stores.rows.values()}
    for way in run.ways:
        way.seconds = way.bytes / speeds[way.target]
    return run


def dry_run_of(row: MoveRule) -> DryRun:
    """What this rule alone would move, whether it is active or not."""
    return dry_run([rule_of(row)], only_tenant=row.tenant_id)


@dataclass
class Held:
    """What a store holds. `leaving_bytes`: old places in their grace time."""

    store: Store
    segments: int = 0
    bytes: int = 0
    copy_bytes: int = 0
    leaving_bytes: int = 0
    money_a_month: Decimal = Decimal(0)

    @property
    def total_bytes(self) -> int:
        return self.bytes + self.copy_bytes + self.leaving_bytes


def held(
    tenant_ids: Sequence[int] | None = None, platform: PriceVersion | None = None
) -> list[Held]:
    """By store, nearest first; of these tenants, or of all. Four queries, three with `platform`."""
    stores = Stores()
    sums = {store_id: Held(row) for store_id, row in stores.rows.items()}
    segments, copies = Segment.unscoped.all(), SegmentCopy.unscoped.all()
    if tenant_ids is not None:
        segments = segments.filter(tenant_id__in=tenant_ids)
        copies = copies.filter(tenant_id__in=tenant_ids)
    for store_id, number, bytes_ in (
        segments.order_by().values_list("store_id").annotate(Count("pk"), Sum("size_bytes"))
    ):
        sums[store_id].segments, sums[store_id].bytes = number, bytes_
    for store_id, state, bytes_ in (
        copies.order_by().values_list("store_id", "state").annotate(Sum("size_bytes"))
    ):
        if state == SegmentCopy.State.KEPT:
            sums[store_id].copy_bytes += bytes_
        else:
            sums[store_id].leaving_bytes += bytes_
    known = all_prices(stores, platform)
    for store_id, each in sums.items():
        each.money_a_month = Decimal(each.total_bytes) / (1 << 30) * known[store_id].gib_month
    return [sums[store_id] for store_id in stores.order(sums)]
