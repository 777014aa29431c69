"""Savings as the page shows them: amounts in words, and months beside one another."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from neve.planner.savings import money_text
from planning.savings import Line, Row

WORDS = {
    "prefill": "Prefill that loads spared",
    "loads": "Time that requests waited for those loads",
    "slower": "Time lost by loads slower than computing",
    "hot": "Hot tier",
    "cold": "Object store",
    "requests": "Requests to the object store",
    "egress": "Bytes read from the object store",
}


@dataclass(frozen=True)
class ShownLine:
    words: str
    input: str
    amount: str


@dataclass(frozen=True)
class ShownRow:
    """`verdict`: the net in words; `is_loss`: it is below 0."""

    row: Row
    gross: str
    costs: str
    net: str
    verdict: str
    is_loss: bool
    lines: list[ShownLine]


@dataclass(frozen=True)
class Month:
    """All tenants of one month and currency. `bar`: of the largest amount of the table, 0…1."""

    month: str
    currency: str
    gross: str
    costs: str
    net: str
    is_loss: bool
    bar: float


def money(amount: Decimal) -> str:
    """Two decimals, of smaller amounts two digits, and a true minus."""
    text = money_text(abs(amount))
    return f"−{text}" if amount < 0 else text


def row_of(row: Row) -> ShownRow:
    amount = f"{money(abs(row.net))} {row.currency}"
    if row.net < 0:
        verdict = f"a loss of {amount}: loads and storage cost more than they spared"
    elif row.net > 0:
        verdict = f"{amount} saved"
    else:
        verdict = "nothing saved, nothing lost"
    return ShownRow(
        row=row,
        gross=money(row.gross),
        costs=money(row.costs),
        net=money(row.net),
        verdict=verdict,
        is_loss=row.net < 0,
        lines=[_line(line, row.currency) for line in row.lines],
    )


def _line(line: Line, currency: str) -> ShownLine:
    quantity = f"{line.quantity.normalize():,f}"
    return ShownLine(
        words=WORDS.get(line.name, line.name),
        input=f"{quantity} {line.unit} × {line.price} {currency} per {line.per}",
        amount=money(line.amount),
    )


def months_of(rows: Iterable[Row]) -> list[Month]:
    """Newest first. Amounts of different currencies are never added."""
    sums: dict[tuple[str, str], list[Decimal]] = {}
    for row in rows:
        into = sums.setdefault((row.month, row.currency), [Decimal(0), Decimal(0)])
        into[0] += row.gross
        into[1] += row.costs
    most = max((max(each) for each in sums.values()), default=Decimal(0))
    return [
        Month(
            *(month, currency, money(gross), money(costs), money(gross - costs)),
            is_loss=gross < costs,
            bar=float(gross / most) if most else 0.0,
        )
        for (month, currency), (gross, costs) in sums.items()
    ]
