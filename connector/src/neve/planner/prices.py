"""Prices of GPUs, memory, storage and requests, with which savings and what-if estimates count."""

from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal
from typing import Final

from neve.errors import Misuse

MOST: Final = Decimal(1_000_000)  # upper bound of each price
DECIMALS: Final = 9
# First day of the defaults, until an operator sets prices.
LIST_PRICES_FROM: Final = date(2000, 1, 1)


@dataclass(frozen=True)
class Prices:
    """Prices in `currency` (three letters, ISO 4217). Each is between 0 and `MOST`.

    The defaults are list prices, to be replaced by the prices that you pay.
    `gpu_hour`: one GPU for one hour. Source: rental index of H100 by SemiAnalysis, March 2026,
    2.35 USD.
    `hot_gib_hour`: one GiB of memory for one hour. Source: Amazon EC2 r6g.large on demand in
    us-east-1, 2024: 16 GiB for 0.1008 USD.
    `cold_gib_month`, `put_1000`, `get_1000`: one GiB stored for one calendar month, 1,000 PUT-like
    (PUT, POST, COPY, LIST) and 1,000 GET-like requests. Source: Amazon S3 Standard in us-east-1,
    2025.
    `egress_gb`: 10^9 bytes that leave the object store. 0, as between S3 and EC2 of one region;
    to the internet Amazon takes 0.09 USD.

    Raises Misuse with the field that has a wrong value.
    """

    gpu_hour: Decimal = Decimal("2.35")
    hot_gib_hour: Decimal = Decimal("0.0063")
    cold_gib_month: Decimal = Decimal("0.023")
    put_1000: Decimal = Decimal("0.005")
    get_1000: Decimal = Decimal("0.0004")
    egress_gb: Decimal = Decimal(0)
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in PRICE_NAMES:
            price = getattr(self, name)
            if not price.is_finite() or not 0 <= price <= MOST:
                raise Misuse(f"needs to be between 0 and {MOST}", field=name)
        letters = self.currency
        if not (
            len(letters) == 3 and letters.isascii() and letters.isalpha() and letters.isupper()
        ):
            raise Misuse("needs to be three capital letters, such as USD", field="currency")


PRICE_NAMES: Final = tuple(each.name for each in fields(Prices) if each.name != "currency")
