"""The formula of savings: worked numbers, and what holds of any."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.planner.prices import MOST, PRICE_NAMES, Prices
from neve.planner.savings import USED_NAMES, Savings, Used, money_text, savings

NOVEMBER_S = 30 * 86_400
GIB_KIB = 1 << 20
FIELDS = ("prefill", "loads", "slower", "hot", "cold", "requests", "egress")

useds = st.builds(Used, **{name: st.integers(0, 2**57) for name in USED_NAMES})
amounts = st.decimals(0, MOST, places=9)
all_prices = st.builds(Prices, **dict.fromkeys(PRICE_NAMES, amounts))


def test_a_worked_month():
    """Eight GPUs spared 10 hours of prefill and waited 1 hour; 100 GiB hot for a day, 2 TiB cold
    for half a month, 4,000 PUTs, a million GETs, 500 GB read."""
    used = Used(
        spared_tokens=1_000_000,
        spared_gpu_us=80 * 3_600_000_000,
        load_gpu_us=8 * 3_600_000_000,
        slower_tokens=512,
        slower_gpu_us=1_800_000_000,
        unpriced_tokens=4096,
        hot_kib_s=100 * GIB_KIB * 86_400,
        cold_kib_s=2048 * GIB_KIB * NOVEMBER_S // 2,
        puts=4_000,
        gets=1_000_000,
        egress_bytes=500 * 10**9,
    )
    prices = Prices(
        gpu_hour=Decimal("2.50"),
        hot_gib_hour=Decimal("0.005"),
        cold_gib_month=Decimal("0.02"),
        put_1000=Decimal("0.005"),
        get_1000=Decimal("0.0004"),
        egress_gb=Decimal("0.09"),
    )
    found = savings(used, prices, month_s=NOVEMBER_S)
    assert found == Savings(
        prefill=Fraction(200),
        loads=Fraction(20),
        slower=Fraction("1.25"),
        hot=Fraction(12),
        cold=Fraction("20.48"),
        requests=Fraction("0.42"),
        egress=Fraction(45),
    )
    assert found.costs == Fraction("99.15")
    assert found.net == Fraction("100.85")


def test_a_gib_held_for_the_whole_month_costs_the_month_price_in_any_month():
    for days in (28, 29, 30, 31):
        used = Used(cold_kib_s=GIB_KIB * days * 86_400)
        found = savings(used, Prices(), month_s=days * 86_400)
        assert found.cold == Fraction(Prices().cold_gib_month)


@given(useds, all_prices)
def test_slower_and_unpriced_loads_never_save(used, prices):
    without = Used(**{**vars(used), "spared_tokens": 0, "spared_gpu_us": 0})
    found = savings(without, prices, month_s=NOVEMBER_S)
    assert found.prefill == 0
    assert found.net <= 0


@given(useds, all_prices, st.integers(0, 2**40))
def test_more_slower_time_or_cost_never_raises_the_net(used, prices, more):
    net = savings(used, prices, month_s=NOVEMBER_S).net
    for name in USED_NAMES:
        other = Used(**{**vars(used), name: getattr(used, name) + more})
        changed = savings(other, prices, month_s=NOVEMBER_S).net
        assert changed >= net if name == "spared_gpu_us" else changed <= net


@given(st.lists(useds, max_size=8), all_prices)
def test_sums_of_spaces_are_the_tenants(each, prices):
    whole, parts = Used(), Savings()
    for used in each:
        whole += used
        parts += savings(used, prices, month_s=NOVEMBER_S)
    assert savings(whole, prices, month_s=NOVEMBER_S) == parts
    assert parts.net == parts.prefill - sum(getattr(parts, name) for name in FIELDS[1:])


@pytest.mark.parametrize(
    ("amount", "shown"),
    [("1250", "1,250.00"), ("-3.5", "-3.50"), ("0.01", "0.01"), ("-0.000610", "-0.00061"),
     ("0.000001", "0.000001"), ("-0.000000", "0.00")],
)  # fmt: skip
def test_small_amounts_keep_two_digits(amount, shown):
    assert money_text(Decimal(amount)) == shown


@pytest.mark.parametrize("name", PRICE_NAMES)
@pytest.mark.parametrize("wrong", ["-0.01", "1000000.01", "NaN", "Infinity"])
def test_a_wrong_price_is_named(name, wrong):
    with pytest.raises(Misuse) as caught:
        Prices(**{name: Decimal(wrong)})
    assert caught.value.field == name


@pytest.mark.parametrize("wrong", ["", "usd", "EURO", "E1R", "ÄÖÜ"])
def test_a_wrong_currency_is_named(wrong):
    with pytest.raises(Misuse) as caught:
        Prices(currency=wrong)
    assert caught.value.field == "currency"
