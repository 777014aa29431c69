"""Savings by month and by tenant or space, out of `SpaceDay` and the prices of each day."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from django.db.models import Case, F, FloatField, IntegerField, Max, Sum, Value, When
from django.db.models.functions import Cast, TruncMonth

from base.problems import Problem
from neve.planner import savings as formula
from neve.planner.prices import LIST_PRICES_FROM
from neve.planner.savings import Savings, Used
from planning import prices
from planning.models import PriceVersion, SpaceDay
from tenants.models import Tenant

BY: Final = ("tenant", "space")
MOST_MONTHS: Final = 36
MOST_ROWS: Final = 5_000
FORMULA: Final = (
    "net = prefill - loads - slower - hot - cold - requests - egress; prefill, loads and slower = "
    "GPU-hours × gpu_hour; hot = GiB-hours × hot_gib_hour; cold = GiB-months × cold_gib_month; "
    "requests = PUTs ÷ 1,000 × put_1000 + GETs ÷ 1,000 × get_1000; egress = GB × egress_gb"
)
_COLUMNS: Final = (
    *("requested_tokens", "hit_hot_tokens", "hit_cold_tokens", "hit_local_tokens", "spared_tokens"),
    *(
        "spared_gpu_us",
        "load_gpu_us",
        "slower_tokens",
        "slower_gpu_us",
        "unpriced_tokens",
        "cold_requests",
    ),
    *("cold_fetched_bytes", "worker_puts", "worker_gets", "worker_read_bytes", "hot_kib_s"),
    "cold_kib_s",
)


@dataclass(frozen=True)
class Line:
    """One term of the formula. `amount` is signed: the amounts of a row add up to its net."""

    name: str
    quantity: Decimal
    unit: str
    price: str
    per: str
    amount: Decimal


@dataclass
class Row:
    """A tenant or one of its spaces in one month. `space_id` None: all spaces; 0: of no space.

    `notes`: code → words: what is not measured, and how figures were shared.
    """

    tenant: str
    tenant_name: str
    month: str
    currency: str
    space_id: int | None = None
    space: str | None = None
    used: Used = field(default_factory=Used)
    hit_tokens: int = 0
    requested_tokens: int = 0
    gap_s: int = 0
    lines: list[Line] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def gross(self) -> Decimal:
        return sum((line.amount for line in self.lines if line.name == "prefill"), Decimal(0))

    @property
    def net(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal(0))

    @property
    def costs(self) -> Decimal:
        return self.gross - self.net

    def of(self, name: str) -> Decimal:
        """The signed amount of a term."""
        return sum((line.amount for line in self.lines if line.name == name), Decimal(0))


def month_named(text: str) -> date:
    """The first day of a month such as `2026-11`. Raises Problem (malformed)."""
    found = re.fullmatch(r"(2\d{3})-(0[1-9]|1[0-2])", text, re.ASCII)
    if found is None:
        raise Problem(
            "malformed", f"month: need one such as 2026-11, got {text[:20]!r}.", field="month"
        )
    return date(int(found[1]), int(found[2]), 1)


def this_month() -> date:
    return prices.today().replace(day=1)


def months_before(month: date, months: int) -> date:
    """The first day of the month that lies so many months before `month`."""
    number = month.year * 12 + month.month - 1 - months
    return date(number // 12, number % 12 + 1, 1)


def rows(
    tenant_ids: Collection[int] | None, *, month: date, months: int = 1, by: str = "tenant"
) -> list[Row]:
    """Rows of the `months` that end with `month`, of these tenants or (None) of all: newest month
    first, then by tenant and space. Days without counts have no row. Two queries.

    Raises Problem (malformed) if that are more than MOST_ROWS rows.
    """
    found = list(_rows(tenant_ids, month=month, months=months, by=by, most=MOST_ROWS + 1))
    if len(found) > MOST_ROWS:
        raise Problem("malformed", "tenant: name one; these are too many rows.", field="tenant")
    return found


def all_rows(
    tenant_ids: Collection[int] | None, *, month: date, months: int, by: str
) -> Iterator[list[Row]]:
    """As `rows`, of any number, a hundred tenants at a time: for exports."""
    tenants = Tenant.objects.order_by("pk")
    if tenant_ids is not None:
        tenants = tenants.filter(pk__in=tenant_ids)
    last = 0
    while ids := list(tenants.filter(pk__gt=last).values_list("pk", flat=True)[:100]):
        yield list(_rows(ids, month=month, months=months, by=by, most=None))
        last = ids[-1]


def _rows(
    tenant_ids: Collection[int] | None, *, month: date, months: int, by: str, most: int | None
) -> Iterator[Row]:
    versions = prices.versions()
    sums: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for group in _groups(tenant_ids, versions, month=month, months=months, by=by)[:most]:
        key = group["month"], group["tenant_id"], group.get("space_number")
        sums[key].append(group)
    for groups in sums.values():
        yield _row(groups, versions, by)


def _groups(
    tenant_ids: Collection[int] | None,
    versions: Sequence[PriceVersion],
    *,
    month: date,
    months: int,
    by: str,
) -> Any:
    days = SpaceDay.unscoped.filter(
        day__gte=months_before(month, months - 1), day__lt=months_before(month, -1)
    )
    if tenant_ids is not None:
        days = days.filter(tenant_id__in=tenant_ids)
    numbered = [
        When(day__gte=version.valid_from, then=Value(number))
        for number, version in enumerate(versions)
    ]
    names = ["tenant_id", "tenant__slug", "tenant__name"]
    names += ["space_number"] if by == "space" else []
    # As floats, since sums of integers overflow and then raise; exact up to 2^53.
    return (
        days.order_by()
        .annotate(
            month=TruncMonth("day"),
            version=Case(*numbered, default=Value(len(versions) - 1), output_field=IntegerField()),
        )
        .values("month", *names, "version")
        .annotate(
            space_named=Max("space_name"),
            gap_s=Max("gap_s"),
            **{f"sum_{name}": Sum(Cast(F(name), FloatField())) for name in _COLUMNS},
        )
        .order_by("-month", "tenant__slug", *names[3:], "version")
    )


def _row(groups: Sequence[dict[str, Any]], versions: Sequence[PriceVersion], by: str) -> Row:
    first = groups[0]
    month: date = first["month"]
    row = Row(
        tenant=first["tenant__slug"],
        tenant_name=first["tenant__name"],
        month=f"{month:%Y-%m}",
        currency=versions[first["version"]].currency,
        space_id=first.get("space_number"),
        space=_space_name(first) if by == "space" else None,
    )
    month_s = (months_before(month, -1) - month).days * 86_400
    for group in groups:
        sums = {name: int(group[f"sum_{name}"] or 0) for name in _COLUMNS}
        used, version = _used(sums), versions[group["version"]]
        row.used += used
        row.hit_tokens += sum(sums[f"hit_{tier}_tokens"] for tier in ("hot", "cold", "local"))
        row.requested_tokens += sums["requested_tokens"]
        row.gap_s = max(row.gap_s, group["gap_s"])
        amounts = formula.savings(used, prices.prices_of(version), month_s=month_s)
        row.lines += _lines(used, version, amounts, month_s)
    row.notes = _notes(row, groups, versions)
    return row


def _space_name(group: dict[str, Any]) -> str:
    return group["space_named"] or ("no space" if group["space_number"] == 0 else "")


def _used(sums: dict[str, int]) -> Used:
    return Used(
        spared_tokens=sums["spared_tokens"],
        spared_gpu_us=sums["spared_gpu_us"],
        load_gpu_us=sums["load_gpu_us"],
        slower_tokens=sums["slower_tokens"],
        slower_gpu_us=sums["slower_gpu_us"],
        unpriced_tokens=sums["unpriced_tokens"],
        hot_kib_s=sums["hot_kib_s"],
        cold_kib_s=sums["cold_kib_s"],
        puts=sums["worker_puts"],
        gets=sums["worker_gets"] + sums["cold_requests"],
        egress_bytes=sums["worker_read_bytes"] + sums["cold_fetched_bytes"],
    )


def _lines(used: Used, version: PriceVersion, amounts: Savings, month_s: int) -> list[Line]:
    def line(
        name: str, quantity: Fraction, unit: str, price: str, per: str, amount: Fraction
    ) -> Line:
        shown = prices.shown(getattr(version, price))
        return Line(name, rounded(quantity), unit, shown, per, rounded(amount))

    hour, gib = formula.US_PER_HOUR, formula.KIB_PER_GIB
    of_puts = used.puts * Fraction(version.put_1000) / 1000
    each = [
        line("prefill", Fraction(used.spared_gpu_us, hour), "GPU-hours", "gpu_hour", "GPU-hour",
             amounts.prefill),
        line("loads", Fraction(used.load_gpu_us, hour), "GPU-hours", "gpu_hour", "GPU-hour",
             -amounts.loads),
        line("slower", Fraction(used.slower_gpu_us, hour), "GPU-hours", "gpu_hour", "GPU-hour",
             -amounts.slower),
        line("hot", Fraction(used.hot_kib_s, gib * 3600), "GiB-hours", "hot_gib_hour", "GiB-hour",
             -amounts.hot),
        line("cold", Fraction(used.cold_kib_s, gib * month_s), "GiB-months", "cold_gib_month",
             "GiB-month", -amounts.cold),
        line("requests", Fraction(used.puts), "PUT requests", "put_1000", "1,000", -of_puts),
        line("requests", Fraction(used.gets), "GET requests", "get_1000", "1,000",
             of_puts - amounts.requests),
        line("egress", Fraction(used.egress_bytes, formula.BYTES_PER_GB), "GB", "egress_gb", "GB",
             -amounts.egress),
    ]  # fmt: skip
    return [line for line in each if line.quantity]


def rounded(amount: Fraction) -> Decimal:
    """To six decimals."""
    return Decimal(f"{round(amount * 10**6)}e-6")


def _notes(
    row: Row, groups: Sequence[dict[str, Any]], versions: Sequence[PriceVersion]
) -> dict[str, str]:
    used, notes = row.used, {}
    if row.month == f"{this_month():%Y-%m}":
        notes["running"] = "The month is not over: sums up to the last minutes."
    priced = used.spared_tokens + used.slower_tokens
    if row.hit_tokens and not priced:
        notes["no_prefill_speed"] = (
            f"No engine measured its prefill: the {row.hit_tokens:,} loaded tokens count as no "
            "saving; their storage counts."
        )
    elif used.unpriced_tokens:
        notes["unpriced"] = (
            f"{used.unpriced_tokens:,} tokens were loaded before an engine had measured its "
            "prefill: they count as no saving."
        )
    if used.slower_gpu_us:
        notes["slower"] = (
            f"Loads of {used.slower_tokens:,} tokens took longer than computing, or failed: the "
            "time lost is subtracted."
        )
    if row.space_id is not None and used.hot_kib_s:
        notes["hot_shared"] = (
            "The hot tier counts bytes by tenant: spaces share them by the bytes stored for each "
            "in the last 7 days."
        )
    if row.gap_s:
        notes["gap"] = (
            f"On a day, nothing sampled the bytes held for {row.gap_s // 60:,} minutes: they are "
            "filled in between two samples."
        )
    if any(versions[each["version"]].valid_from == LIST_PRICES_FROM for each in groups):
        notes["list_prices"] = "Counted at list prices: no operator has set prices for this time."
    return notes
