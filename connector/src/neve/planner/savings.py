"""What stored context saved: GPU time not spent on prefill, minus the cost of loads and storage.

Arithmetic only. Amounts are exact fractions: sums of spaces equal the tenant's figures; round when
printing.

    net = prefill saved - load time - slower loads - hot - cold - requests - egress

Only loads that were faster than computing count as saved. vLLM asks Neve for tokens behind its own
prefix cache only, so no token counts that the GPU's cache would have had.
"""

from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import Final, Self

from neve.planner.prices import Prices

US_PER_HOUR: Final = 3_600_000_000
KIB_PER_GIB: Final = 1 << 20
BYTES_PER_GB: Final = 10**9


@dataclass(frozen=True)
class Used:
    """Measured quantities of a space and a time. All counts are 0 or more.

    Microseconds with `gpu_` are multiplied by the number of GPUs of the engine that measured them.
    `spared_tokens`, `spared_gpu_us`: loads that were faster than computing, and the prefill that
    they spared; `load_gpu_us`: the time that requests waited for them. `slower_gpu_us`: time lost
    by loads that were slower, or failed. `unpriced_tokens`: loaded before the engine knew its
    prefill speed; they count nothing. `hot_kib_s`, `cold_kib_s`: KiB held, times seconds.
    `puts`, `gets`: requests to the object store. `egress_bytes`: read from it.
    """

    spared_tokens: int = 0
    spared_gpu_us: int = 0
    load_gpu_us: int = 0
    slower_tokens: int = 0
    slower_gpu_us: int = 0
    unpriced_tokens: int = 0
    hot_kib_s: int = 0
    cold_kib_s: int = 0
    puts: int = 0
    gets: int = 0
    egress_bytes: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(**{n: getattr(self, n) + getattr(other, n) for n in USED_NAMES})


USED_NAMES: Final = tuple(each.name for each in fields(Used))


def money_text(amount: Decimal) -> str:
    """1,250.00, -3.50; below 0.01 two digits, at most six decimals: 0.00061. 0 has no sign."""
    if not amount:
        return "0.00"
    places = 2 if abs(amount) >= Decimal("0.01") else min(1 - amount.adjusted(), 6)
    return f"{amount:,.{places}f}"


@dataclass(frozen=True)
class Savings:
    """Amounts of money, in the currency of the prices. Costs are positive and are subtracted."""

    prefill: Fraction = Fraction(0)
    loads: Fraction = Fraction(0)
    slower: Fraction = Fraction(0)
    hot: Fraction = Fraction(0)
    cold: Fraction = Fraction(0)
    requests: Fraction = Fraction(0)
    egress: Fraction = Fraction(0)

    @property
    def costs(self) -> Fraction:
        return self.loads + self.slower + self.hot + self.cold + self.requests + self.egress

    @property
    def net(self) -> Fraction:
        """Below 0: a loss."""
        return self.prefill - self.costs

    def __add__(self, other: Self) -> Self:
        names = [each.name for each in fields(self)]
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})


def savings(used: Used, prices: Prices, *, month_s: int) -> Savings:
    """`month_s`: seconds of the calendar month that `used` belongs to, for `cold_gib_month`."""
    gpu_us = Fraction(prices.gpu_hour) / US_PER_HOUR
    return Savings(
        prefill=used.spared_gpu_us * gpu_us,
        loads=used.load_gpu_us * gpu_us,
        slower=used.slower_gpu_us * gpu_us,
        hot=used.hot_kib_s * Fraction(prices.hot_gib_hour) / (KIB_PER_GIB * 3600),
        cold=used.cold_kib_s * Fraction(prices.cold_gib_month) / (KIB_PER_GIB * month_s),
        requests=(used.puts * Fraction(prices.put_1000) + used.gets * Fraction(prices.get_1000))
        / 1000,
        egress=used.egress_bytes * Fraction(prices.egress_gb) / BYTES_PER_GB,
    )
