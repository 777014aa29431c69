"""What fills a space: the prefix tree of its contexts by bytes, and who shares blocks with whom.

The database sorts the chains, and they are read one after the other, as in `contexts.lineage`. The
index is asked about at most MOST_ASKED distinct ids, chosen by their first bytes: ids are keyed
hashes, so that is a fair sample. Bytes of a part of the tree are its blocks (exact) times what its
sampled blocks have on average.

Bounds: memory is about 300 bytes a context and READ_AT_ONCE chains; the answer has MOST_NODES
prefixes and 24 bytes a context. Time grows with the bytes of the chains.
"""

import heapq
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from django.utils import timezone

from catalog.models import ID_BYTES, Context, Space
from contexts.chains import ids_per_chunk, shared_ids
from contexts.hits import hit_tokens_of_day
from contexts.lineage import Branch, tree_of
from contexts.parts import Parts
from neve.index.tier import HotTier, Location, Tier
from storage import hot
from tenants.scope import tenant_scope

READ_AT_ONCE = 50  # chains of at most 512 KiB, unless an operator allowed longer contexts
MOST_ASKED = 50_000  # ids
MOST_NODES = 1_000  # prefixes of the answer, the largest
MOST_DEPTH = 40
MOST_NAMED = 500  # contexts in one statement
LEAST_NAME = 3  # characters of a common beginning of names that is worth to be shown


@dataclass(frozen=True)
class Amount:
    """Blocks (exact), and bytes of those in Valkey (`hot`), only in S3 (`cold`) and in neither
    (`lost`: at the mean size of a stored block of the space)."""

    blocks: int = 0
    hot_bytes: int = 0
    cold_bytes: int = 0
    lost_bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, int, int, int]:
        return self.blocks, self.hot_bytes, self.cold_bytes, self.lost_bytes

    @property
    def stored_bytes(self) -> int:
        return self.hot_bytes + self.cold_bytes

    @property
    def whole_bytes(self) -> int:
        return self.stored_bytes + self.lost_bytes


@dataclass(frozen=True)
class Prefix:
    """A beginning that `contexts` unexpired contexts have, or one context's own end.

    `key`: names it, see `contexts.choosing`; empty for the whole space. `own`: of the blocks behind
    the parent's beginning up to this one's end; `total`: with all that continues it. `context`: one
    that ends exactly here. `hit_tokens`: of the last day, by requests that named these contexts.
    `rest`: what continues it and is too small to be among `children`.
    """

    key: str
    name: str
    context: UUID | None
    tokens: int
    contexts: int
    pinned: int
    pinned_until: datetime | None
    used_at: datetime | None
    hit_tokens: int
    own: Amount
    total: Amount
    children: tuple["Prefix", ...] = ()
    rest: Amount = Amount()
    rest_contexts: int = 0

    def walk(self) -> Iterator["Prefix"]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Tree:
    """`is_estimate`: bytes are extrapolated from a sample. `order`: who shares with whom."""

    space_id: int
    at: datetime
    root: Prefix
    is_estimate: bool
    order: "Order"

    def path_to(self, key: str) -> tuple[Prefix, ...]:
        """From the root to the prefix of this key; empty: the tree does not show it."""

        def down(node: Prefix) -> tuple[Prefix, ...]:
            if node.key == key:
                return (node,)
            for child in node.children:
                if found := down(child):
                    return (node, *found)
            return ()

        return down(self.root)


@dataclass(frozen=True)
class Order:
    """The unexpired contexts in the order of their chains: ids shared with the one before, and the
    length, in ids. 24 bytes each."""

    uuids: bytes
    shared: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.uint32]

    def place(self, uuid: UUID) -> int | None:
        table = np.frombuffer(self.uuids, np.dtype("V16"))
        found = np.flatnonzero(table == np.void(uuid.bytes))
        return int(found[0]) if len(found) else None

    def own_from(self, uuid: UUID) -> int | None:
        """Ids of the chain from which on nobody else has them; None: not known here."""
        at = self.place(uuid)
        if at is None:
            return None
        behind = int(self.shared[at + 1]) if at + 1 < len(self.shared) else 0
        return max(int(self.shared[at]), behind)

    def sharers(self, uuid: UUID, most: int) -> list[tuple[UUID, int]]:
        """Those that share the longest beginnings with it, and how many ids, longest first."""
        at = self.place(uuid)
        if at is None:
            return []
        found: list[tuple[UUID, int]] = []
        up, down = at, at + 1
        before = int(self.shared[up])
        behind = int(self.shared[down]) if down < len(self.shared) else 0
        while len(found) < most and max(before, behind):
            if before >= behind:
                up -= 1
                found.append((self._uuid(up), before))
                before = min(before, int(self.shared[up]))
            else:
                found.append((self._uuid(down), behind))
                down += 1
                more = int(self.shared[down]) if down < len(self.shared) else 0
                behind = min(behind, more)
        return found

    def sharing(self, uuid: UUID) -> int:
        """How many others share at least the first id."""
        at = self.place(uuid)
        if at is None:
            return 0
        starts = np.flatnonzero(self.shared == 0)
        first = int(starts[np.searchsorted(starts, at, "right") - 1])
        behind = np.searchsorted(starts, at, "right")
        end = int(starts[behind]) if behind < len(starts) else len(self.shared)
        return end - first - 1

    def _uuid(self, place: int) -> UUID:
        return UUID(bytes=self.uuids[16 * place : 16 * place + 16])


def key_of(id_: bytes, ids: int) -> str:
    """Names the beginning of `ids` ids that ends with `id_`: ids are chained, so the last one
    stands for all."""
    return f"{ids}-{id_.hex()}"


def tree(space: Space) -> Tree:
    """Raises Problem (hot-tier-unavailable). Five SQL statements at most."""
    at = timezone.now()
    with tenant_scope(space.tenant_id):
        chains = _Chains(space)
        chains.read()
        hits = hit_tokens_of_day((space.tenant,), (space.pk,))
    with hot.required():
        sampled = _Sampled(chains, hot.hot_tier(space.tenant_id))
    root = _Grown(space, chains, sampled, hits).root()
    order = Order(
        bytes(chains.uuids),
        np.frombuffer(chains.shared, np.uint32),
        np.frombuffer(chains.lengths, np.uint32),
    )
    return Tree(space.pk, at, root, chains.bound < _ALL, order)


_ALL = 1 << 32  # every first four bytes of an id is below


class _Chains:
    """The unexpired contexts of a space in the order of their chains. Inside the tenant's scope.

    `samples`: (row, place in the chain, id) of distinct ids whose first four bytes are below
    `bound`, which is halved whenever there would be more than MOST_ASKED.
    """

    def __init__(self, space: Space) -> None:
        self.space, self.parts = space, Parts(space)
        self.groups = max(1, len(self.parts.groups))
        self.uuids, self.names, self.labels = bytearray(), list[str](), list[str]()
        self.tokens, self.ids_per_chunk = array("q"), array("I")
        self.shared, self.lengths = array("I"), array("I")
        self.pinned_s, self.used_s = array("d"), array("d")
        self.bound = _ALL
        self.samples: list[tuple[int, int, bytes]] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self) -> None:
        rows = Context.objects.filter(space=self.space, expired_at=None).order_by("root", "chain")
        found = rows.values_list(
            *("pk", "name", "label", "tokens", "pinned_until", "last_used_at", "chain")
        )
        before, most = b"", MOST_ASKED // self.groups
        for row in found.iterator(chunk_size=READ_AT_ONCE):
            uuid, name, label, tokens, pinned_until, used_at, chain = row
            chain = bytes(chain)
            length = len(chain) // ID_BYTES
            a_chunk = ids_per_chunk(length, tokens=tokens, chunk_tokens=self.space.chunk_tokens)
            shared = shared_ids(before, chain) // a_chunk * a_chunk
            self.uuids += uuid.bytes
            self.names.append(name)
            self.labels.append(label)
            self.tokens.append(tokens)
            self.ids_per_chunk.append(a_chunk)
            self.shared.append(shared)
            self.lengths.append(length)
            self.pinned_s.append(pinned_until.timestamp() if pinned_until else 0)
            self.used_s.append(used_at.timestamp() if used_at else 0)
            self._sample(chain, shared, length)
            while len(self.samples) > most:
                self.bound //= 2
                self.samples = [each for each in self.samples if _draw(each[2]) < self.bound]
            before = chain

    def _sample(self, chain: bytes, first: int, length: int) -> None:
        row = len(self.lengths) - 1
        if self.bound == _ALL:
            places: Sequence[int] = range(first, length)
        else:
            words = np.frombuffer(chain, ">u4")[4 * first :: 4]
            places = (np.flatnonzero(words < self.bound) + first).tolist()
        self.samples += [(row, n, chain[n * ID_BYTES : (n + 1) * ID_BYTES]) for n in places]

    def ids_at(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """The ids at (row, place), read again, since chains are not kept; b"" if gone meanwhile."""
        wanted: dict[UUID, list[int]] = {}
        for n, (row, _) in enumerate(places):
            wanted.setdefault(self.uuid(row), []).append(n)
        found, uuids = [b""] * len(places), sorted(wanted)
        for at in range(0, len(uuids), MOST_NAMED):
            rows = Context.objects.filter(pk__in=uuids[at : at + MOST_NAMED]).order_by()
            chains = rows.values_list("pk", "chain").iterator(chunk_size=READ_AT_ONCE)
            for uuid, chain in chains:
                for n in wanted[uuid]:
                    place = places[n][1] * ID_BYTES
                    found[n] = bytes(chain[place : place + ID_BYTES])
        return found

    def uuid(self, row: int) -> UUID:
        return UUID(bytes=bytes(self.uuids[16 * row : 16 * row + 16]))


def _draw(id_: bytes) -> int:
    return int.from_bytes(id_[:4], "big")


class _Sampled:
    """Sums over sampled ids, in the order of rows and places. Raises valkey's errors."""

    def __init__(self, chains: _Chains, tier: HotTier) -> None:
        samples = chains.samples
        self._keys = np.array([(row << 32) + place for row, place, _ in samples], np.int64)
        answers = tier.match(chains.parts.of([id_ for _, _, id_ in samples])) if samples else []
        table = np.zeros((len(samples) + 1, 4), np.float64)  # hot bytes, cold bytes, lost, asked
        groups = chains.groups
        for n, answer in enumerate(answers):
            line = table[n // groups + 1]
            line[3] += 1
            if isinstance(answer, Location):
                line[0 if answer.tier is Tier.HOT else 1] += answer.size_bytes
            else:
                line[2] += 1
        self._sums = np.cumsum(table, axis=0)
        whole = self._sums[-1]
        there = whole[3] - whole[2]
        self.mean = (whole[0] + whole[1]) / there if there else 1.0

    def amount(self, blocks: int, *ranges: tuple[int, int]) -> Amount:
        """`ranges`: of keys, (first, behind the last), disjoint."""
        found = np.zeros(4)
        for first, behind in ranges:
            low, high = np.searchsorted(self._keys, (first, behind))
            found += self._sums[high] - self._sums[low]
        if not found[3]:
            found = self._sums[-1]
        each = blocks / found[3] if found[3] else 0.0
        lost = found[2] * self.mean
        return Amount(blocks, *(round(value * each) for value in (found[0], found[1], lost)))


@dataclass
class _Part:
    """A node under way: rows `first` to `last`, ids `begin` to `end` of their chains."""

    first: int
    last: int
    begin: int
    end: int
    branch: Branch | None
    depth: int = 0
    children: list["_Part"] = field(default_factory=list)
    key: str = ""


class _Grown:
    """Picks the largest nodes, weighs and names them."""

    def __init__(
        self,
        space: Space,
        chains: _Chains,
        sampled: _Sampled,
        hits: Mapping[tuple[int, str], int],
    ) -> None:
        self._space, self._chains, self._sampled = space, chains, sampled
        self._hits = np.zeros(len(chains) + 1, np.int64)
        if hits:
            found = [hits.get((space.pk, name), 0) for name in chains.names]
            self._hits[1:] = np.cumsum(found)
        lengths = np.frombuffer(chains.lengths, np.uint32).astype(np.int64)
        self._lengths = lengths
        new = lengths - np.frombuffer(chains.shared, np.uint32)
        self._new = np.concatenate(([0], np.cumsum(new))) if len(new) else np.zeros(1, np.int64)
        self._pinned = np.frombuffer(chains.pinned_s, np.float64)
        self._used = np.frombuffer(chains.used_s, np.float64)
        self._now_s = timezone.now().timestamp()

    def root(self) -> Prefix:
        if not len(self._chains):
            return Prefix("", self._space.name, None, 0, 0, 0, None, None, 0, Amount(), Amount())
        branch = tree_of(self._chains.shared)
        top = _Part(0, len(self._chains) - 1, 0, 0, branch)
        shown = self._pick(top)
        with tenant_scope(self._space.tenant_id):
            ids = self._chains.ids_at([(part.first, part.end - 1) for part in shown])
        for part, id_ in zip(shown, ids, strict=True):
            part.key = key_of(id_, part.end) if id_ else ""
        return self._prefix(top)

    def _pick(self, top: _Part) -> list[_Part]:
        """The MOST_NODES largest below `top`: a part has more blocks than those behind it."""
        picked: list[_Part] = []
        waiting: list[tuple[int, int, _Part, _Part]] = []
        number = 0

        def offer(parent: _Part) -> None:
            nonlocal number
            for part in self._below(parent):
                number += 1
                blocks = self._blocks(part)
                if blocks:
                    heapq.heappush(waiting, (-blocks, number, part, parent))
                if len(waiting) > 4 * MOST_NODES:
                    waiting[:] = heapq.nsmallest(MOST_NODES, waiting)

        offer(top)
        while waiting and len(picked) < MOST_NODES:
            _, _, part, parent = heapq.heappop(waiting)
            parent.children.append(part)
            picked.append(part)
            if part.depth < MOST_DEPTH:
                offer(part)
        return picked

    def _below(self, parent: _Part) -> Iterator[_Part]:
        """Longer beginnings, and contexts that go on alone."""
        if parent.branch is None:
            return
        depth = parent.depth + 1
        for child in parent.branch.children:
            yield _Part(child.first, child.last, parent.end, child.ids, child, depth)
        for row in parent.branch.alone():
            length = int(self._lengths[row])
            if length > parent.end:
                yield _Part(row, row, parent.end, length, None, depth)

    def _blocks(self, part: _Part) -> int:
        """Distinct blocks of the part and all behind it."""
        ids = int(self._lengths[part.first]) - part.begin
        ids += int(self._new[part.last + 1] - self._new[part.first + 1])
        return ids * self._chains.groups

    def _prefix(self, part: _Part) -> Prefix:
        groups = self._chains.groups
        children = sorted(
            (self._prefix(child) for child in part.children),
            key=lambda child: (-child.total.whole_bytes, child.key),
        )
        own_blocks = (part.end - part.begin) * groups
        first = part.first << 32
        own = self._sampled.amount(own_blocks, (first + part.begin, first + part.end))
        rest_blocks = self._blocks(part) - own_blocks - sum(c.total.blocks for c in children)
        rest = Amount()
        if rest_blocks > 0:
            rest = self._sampled.amount(rest_blocks, *self._between(part))
        counted = sum(child.contexts for child in children)
        ends = self._ends(part)
        rows = slice(part.first, part.last + 1)
        pins = self._pinned[rows]
        pinned = int(np.count_nonzero(pins > self._now_s))
        used = float(self._used[rows].max())
        a_chunk = self._chains.ids_per_chunk[part.first]
        tokens = part.end // a_chunk * self._space.chunk_tokens
        is_one = part.branch is None
        return Prefix(
            key=part.key,
            name=self._name(part, ends),
            context=self._chains.uuid(part.first) if ends else None,
            tokens=int(self._chains.tokens[part.first]) if is_one else tokens,
            contexts=part.last - part.first + 1,
            pinned=pinned,
            pinned_until=_moment(float(pins.max())) if pinned else None,
            used_at=_moment(used) if used else None,
            hit_tokens=int(self._hits[part.last + 1] - self._hits[part.first]),
            own=own,
            total=sum((child.total for child in children), own + rest),
            children=tuple(children),
            rest=rest,
            rest_contexts=part.last - part.first + 1 - counted - ends,
        )

    def _between(self, part: _Part) -> Iterator[tuple[int, int]]:
        """Ranges of keys behind the part's own end that none of its children covers."""
        at = (part.first << 32) + part.end
        for child in sorted(part.children, key=lambda child: child.first):
            yield at, (child.first << 32) + part.end
            at = (child.last + 1) << 32
        yield at, (part.last + 1) << 32

    def _ends(self, part: _Part) -> int:
        """Contexts that end exactly here: they are sorted before those that go on."""
        rows = self._lengths[part.first : part.last + 1]
        return int(np.count_nonzero(rows == part.end)) if part.end else 0

    def _name(self, part: _Part, ends: int) -> str:
        chains = self._chains
        if not part.end:
            return self._space.name
        if ends:
            return chains.names[part.first]
        names = chains.names[part.first : part.last + 1]
        common = _common(min(names), max(names))
        if len(common) >= LEAST_NAME:
            return f"{common}…"
        labels = set(chains.labels[part.first : part.last + 1])
        label = labels.pop() if len(labels) == 1 else ""
        return label or f"{len(names)} contexts"


def _common(one: str, other: str) -> str:
    """Their common beginning."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return one[:n]
    return min(one, other, key=len)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.get_current_timezone())


def as_json(found: Prefix) -> dict[str, Any]:
    """For a cache: what `from_json` reads."""
    return {
        **{"k": found.key, "n": found.name, "c": found.context and found.context.hex},
        **{"t": found.tokens, "m": found.contexts, "p": found.pinned},
        "pu": found.pinned_until and found.pinned_until.timestamp(),
        "u": found.used_at and found.used_at.timestamp(),
        "h": found.hit_tokens,
        **{"o": found.own.values(), "a": found.total.values(), "r": found.rest.values()},
        **{"rc": found.rest_contexts, "ch": [as_json(child) for child in found.children]},
    }


def from_json(raw: dict[str, Any]) -> Prefix:
    return Prefix(
        raw["k"],
        raw["n"],
        raw["c"] and UUID(hex=raw["c"]),
        raw["t"],
        raw["m"],
        raw["p"],
        raw["pu"] and _moment(raw["pu"]),
        raw["u"] and _moment(raw["u"]),
        raw["h"],
        Amount(*raw["o"]),
        Amount(*raw["a"]),
        tuple(from_json(child) for child in raw["ch"]),
        Amount(*raw["r"]),
        raw["rc"],
    )
