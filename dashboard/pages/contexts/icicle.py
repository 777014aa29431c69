"""The prefix tree of a space as an icicle chart, the three ready answers, and the selected prefix.

Pure: from `contexts.prefixes.Tree` to places in percent and words.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from contexts.prefixes import Amount, Prefix, Tree
from dashboard.pages.contexts.words import contexts_text

Measure = Callable[[Amount], int]

LEAST_PERCENT = 0.6  # of the width: narrower cells are one "rest"
MOST_CELLS = 400
MOST_LEVELS = 12
HEIGHT, GAP = 62, 3  # pixels of a level
COLOURS = ("tier", "used", "hits")
WHOLE = "all"  # the key of the whole space in addresses
UNREAD = timedelta(days=7)
MUCH_LOST, MOSTLY_HOT, MOSTLY_COLD = 0.28, 0.45, 0.16
_AGES = ((timedelta(hours=1), "u-hour"), (timedelta(days=1), "u-day"), (UNREAD, "u-week"))


@dataclass(frozen=True)
class Cell:
    """`x`, `width`: percent of the chart. `bars`: (kind, x, width) in percent of the cell."""

    node: Prefix
    x: float
    width: float
    level: int
    kind: str
    word: str
    number: int
    siblings: int
    has_children: bool
    is_selected: bool
    bars: tuple[tuple[str, float, float], ...]

    @property
    def y(self) -> int:
        return self.level * (HEIGHT + GAP)

    @property
    def is_wide(self) -> bool:
        return self.width >= 9

    @property
    def is_named(self) -> bool:
        return self.width >= 3.2


@dataclass(frozen=True)
class Rest:
    """What is too small to draw below one cell."""

    x: float
    width: float
    level: int
    contexts: int
    amount: Amount

    @property
    def y(self) -> int:
        return self.level * (HEIGHT + GAP)


@dataclass(frozen=True)
class Icicle:
    cells: tuple[Cell, ...]
    rests: tuple[Rest, ...]
    trail: tuple[Prefix, ...]
    colour: str

    @property
    def height(self) -> int:
        levels = [cell.level for cell in self.cells] + [rest.level for rest in self.rests]
        return (max(levels, default=0) + 1) * (HEIGHT + GAP) - GAP

    @property
    def top(self) -> Prefix:
        return self.trail[-1]

    @property
    def left_out(self) -> tuple[int, int]:
        """Contexts that are too small to draw, and their bytes."""
        return (
            sum(rest.contexts for rest in self.rests),
            sum(rest.amount.whole_bytes for rest in self.rests),
        )


def icicle(tree: Tree, *, top: str, selected: str, colour: str, now: datetime) -> Icicle:
    """`top`, `selected`: keys; one that the tree does not show is the whole space."""
    trail = tree.path_to(top) or (tree.root,)
    cells: list[Cell] = []
    rests: list[Rest] = []
    most_hits = max(trail[-1].hit_tokens, 1)
    measure = _bytes if trail[-1].total.whole_bytes else _blocks

    def draw(node: Prefix, x: float, width: float, level: int, number: int, siblings: int) -> None:
        kind, word = _tier(node)
        if colour == "used":
            kind, word = _age(node, now)
        elif colour == "hits":
            kind, word = _heat(node, most_hits)
        wide = [c for c in node.children if _share(c, node, measure, width) >= LEAST_PERCENT]
        if level + 1 >= MOST_LEVELS:
            wide = []
        cells.append(
            Cell(
                *(node, x, width, level, kind, word, number, siblings, bool(node.children)),
                (node.key or WHOLE) == selected,
                tuple(_bars(node.total)),
            )
        )
        at = x
        for n, child in enumerate(wide, 1):
            if len(cells) >= MOST_CELLS:
                wide = wide[: n - 1]
                break
            share = _share(child, node, measure, width)
            draw(child, at, share, level + 1, n, len(wide))
            at += share
        rest = node.rest
        for child in node.children:
            rest = rest if child in wide else rest + child.total
        left = node.contexts - sum(child.contexts for child in wide) - _ends(node)
        share = _share_of(measure(rest), measure(node.total), width)
        if left > 0 and level + 1 < MOST_LEVELS + 1:
            rests.append(Rest(at, share, level + 1, left, rest))

    draw(trail[-1], 0.0, 100.0, 0, 1, 1)
    drawn = tuple(rest for rest in rests if rest.width >= 0.3)
    hidden = [rest for rest in rests if rest.width < 0.3]
    return Icicle(tuple(cells), (*drawn, *hidden), trail, colour)


def _bytes(amount: Amount) -> int:
    return amount.whole_bytes


def _blocks(amount: Amount) -> int:
    return amount.blocks


def _share(child: Prefix, node: Prefix, measure: Measure, width: float) -> float:
    return _share_of(measure(child.total), measure(node.total), width)


def _share_of(part: int, whole: int, width: float) -> float:
    return width * part / whole if whole else 0.0


def _ends(node: Prefix) -> int:
    """Contexts that end at the node: all that are in no child and not in the rest."""
    return node.contexts - sum(child.contexts for child in node.children) - node.rest_contexts


def _tier(node: Prefix) -> tuple[str, str]:
    whole = node.total.whole_bytes
    if not whole:
        return "t-lost", "nothing stored"
    lost, hot = node.total.lost_bytes / whole, node.total.hot_bytes / whole
    if lost > MUCH_LOST:
        return "t-lost", "much lost"
    if hot > MOSTLY_HOT:
        return "t-hot", "mostly hot"
    return ("t-cold", "mostly cold") if hot < MOSTLY_COLD else ("t-both", "hot and cold")


def _age(node: Prefix, now: datetime) -> tuple[str, str]:
    if node.used_at is None:
        return "u-never", "never used"
    age = now - node.used_at
    words = ("used within an hour", "used within a day", "used within a week")
    for (most, kind), word in zip(_AGES, words, strict=True):
        if age <= most:
            return kind, word
    return "u-old", "not used for a week"


def _heat(node: Prefix, most: int) -> tuple[str, str]:
    """By its share of the tokens that requests found in all that is drawn."""
    word = f"{node.hit_tokens:,} tokens found in 24 h"
    share = node.hit_tokens / most
    if not share:
        return "u-old", word
    return ("u-hour" if share > 0.3 else "u-day" if share > 0.05 else "u-week"), word


def _bars(amount: Amount) -> Iterator[tuple[str, float, float]]:
    at, whole = 0.0, amount.whole_bytes
    values = (amount.hot_bytes, amount.cold_bytes, amount.lost_bytes)
    for kind, value in zip(("hot", "cold", "lost"), values, strict=True):
        if whole and value:
            width = 100 * value / whole
            yield kind, round(at, 2), round(width, 2)
            at += width


@dataclass(frozen=True)
class Answer:
    """A ready answer: its question, the prefix that answers it, and why."""

    question: str
    node: Prefix
    why: str
    size_bytes: int | None = None


def answers(tree: Tree, *, now: datetime) -> tuple[Answer, ...]:
    """Those that the space has."""
    nodes = [node for node in tree.root.walk() if node.key]
    found: list[Answer] = []
    ones = [node for node in nodes if node.context and node.contexts == 1]
    if largest := max(ones, key=lambda node: node.total.stored_bytes, default=None):
        found.append(
            Answer("Largest context", largest, "its own bytes", largest.total.stored_bytes)
        )
    unread = [node for node in nodes if node.used_at is None or now - node.used_at > UNREAD]
    idle = max(unread, key=lambda node: node.total.stored_bytes, default=None)
    if idle is not None and idle.total.stored_bytes:
        why, size_bytes = contexts_text(idle.contexts), idle.total.stored_bytes
        found.append(Answer("Largest that nobody reads", idle, why, size_bytes))
    lost = max(nodes, key=lambda node: node.own.lost_bytes, default=None)
    if lost is not None and lost.own.lost_bytes:
        share = lost.own.lost_bytes / lost.own.whole_bytes
        found.append(Answer("Most lost", lost, f"{share:.0%} of its blocks are gone"))
    several = [node for node in nodes if node.contexts > 1]
    if shared := max(
        several, key=lambda node: (node.contexts - 1) * node.own.stored_bytes, default=None
    ):
        why = f"{contexts_text(shared.contexts)} stand on it"
        found.append(Answer("Most shared", shared, why, shared.own.stored_bytes))
    return tuple(found)


@dataclass(frozen=True)
class Selection:
    """The selected prefix. Expiring its contexts frees `node.total`; `stays_bytes` of what is above
    stay, since `sharers` other contexts begin so. `parents`: from the root's child down."""

    node: Prefix
    parents: tuple[Prefix, ...]

    @property
    def stays_bytes(self) -> int:
        return sum(parent.own.stored_bytes for parent in self.parents)

    @property
    def sharers(self) -> int:
        return self.parents[0].contexts - self.node.contexts if self.parents else 0

    @property
    def is_whole(self) -> bool:
        return not self.node.key


def selection(tree: Tree, key: str) -> Selection:
    """A key that the tree does not show is the whole space."""
    path = tree.path_to(key) or (tree.root,)
    return Selection(path[-1], path[1:-1])
