"""The live requests of one engine, and which chunks are known to be stored.

`lookups`, `loads` and `saves` each work on their part of a request here. Belongs to the scheduler's
thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

from neve.datapath.client import Client
from neve.engine.attest import Attestation
from neve.engine.chains import Chain, Origin
from neve.engine.groups import KvGroup, is_split
from neve.engine.handover import HandoverWait
from neve.engine.link import Link
from neve.engine.params import RequestParams
from neve.engine.step import LoadPlan, NewRequest
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.formats.parts import Resume, resume_at
from neve.index.tier import Location, Tier
from neve.node.membership import MemberState
from neve.node.requests import Outcome
from neve.planner.choice import Choice

T = TypeVar("T")

# Ids remembered as stored (or on their way), so that they are not saved twice: 16 MB at most.
_MOST_STORED_IDS = 1 << 17


# One chunk's locations, one for every column; None where a column's block is not stored. Without
# several KV cache groups a row is complete.
Row = tuple[Location | None, ...]


@dataclass
class Answer:
    """What a look-up found: `rows` of consecutive chunks, and when. `failed`: it says nothing about
    what is stored. `miss`: why the chunk behind them is missing."""

    rows: list[Row]
    failed: bool
    at: float
    miss: MissReason | None = None


@dataclass
class Lookup:
    """One question to Neve: which of the chunks from `start` on are stored?

    `begun_at`: when the question was sent; None while it waits for a thread. `failed`: the answer
    says nothing about what is stored. `choice`: how much of `found` is loaded, decided for a local
    hit of `chosen_for` tokens. `has_foreign`: `found` holds blocks of other engines; None until
    that was checked.
    """

    start: int
    asked_at: float
    future: Future[Answer] | None = None
    begun_at: float | None = None
    failed: bool = False
    found: list[Row] = field(default_factory=list)
    choice: Choice | None = None
    chosen_for: int = 0
    has_foreign: bool | None = None


@dataclass(slots=True)
class Seen:
    """What became of a request, for the ring (`neve.engine.recording`). Of its first look-up:
    `first`, `end`: chunks asked for; `found`: how many of them a load could bring."""

    first: int = 0
    end: int = 0
    local_tokens: int = 0
    found: int = 0
    miss: MissReason | None = None
    match_s: float | None = None
    failed: bool = False
    slower: bool = False
    outcome: Outcome = Outcome.NOTHING
    loaded_tokens: int = 0
    load_s: float | None = None


@dataclass
class Request:
    """One live request.

    `engine`: as the adapter described it. `handover`: its wait for blocks that a prefill node
    named. `loading`, `failed_chunk`: its load under way, and the first chunk that a rank could not
    fill. `next_save`: the first chunk that is not yet saved or found. `reused`: chunk → tier and
    prompt tokens loaded from it; a chunk loaded again after a preemption counts once.
    `asked_tokens`: of the prompt, behind the whole chunks that the engine had at the first look-up.

    The canary (see `neve.engine.canary`): `to_compare` are found chunks that are computed as well
    and compared; then the request `computes_all`. Until the first verdict, chunks behind
    `unproven` ones are not saved. `comparing`: groups of which a block is compared.

    In a family (see `neve.engine.attest`): `shares`: the chain is the family's, so that every
    member finds the blocks. `probes`: the chain is the family's, to be compared alone.

    `has_rear`: its rear was fetched while it was computed (see `neve.engine.rears`), once.
    """

    engine: NewRequest
    origin: Origin
    handover: HandoverWait | None = None
    chain: Chain | None = None
    lookup: Lookup | None = None
    local_tokens: int = 0
    loading: LoadPlan | None = None
    failed_chunk: int | None = None
    may_load: bool = True
    may_save: bool = True
    is_tail_counted: bool = False
    asked_tokens: int = 0
    next_save: int = 0
    reused: dict[int, tuple[Tier, int]] = field(default_factory=dict)
    to_compare: dict[int, Row] = field(default_factory=dict)
    comparing: set[int] = field(default_factory=set)
    computes_all: bool = False
    unproven: bool = False
    shares: bool = False
    probes: bool = False
    never_probes: bool = False
    has_rear: bool = False
    seen: Seen = field(default_factory=Seen)

    @property
    def tokens(self) -> Sequence[int]:
        """The engine's own sequence: prompt and output so far."""
        return self.engine.tokens

    @property
    def params(self) -> RequestParams | None:
        return self.engine.params

    def reused_tokens(self, tier: Tier) -> int:
        """Prompt tokens that were loaded from `tier`."""
        return sum(tokens for place, tokens in self.reused.values() if place is tier)


class StoredChunks:
    """First ids of chunks that this engine knows to be stored; the oldest are forgotten."""

    def __init__(self) -> None:
        self._own: OrderedDict[bytes, bool] = OrderedDict()  # id → whether this engine stored it
        self._lost: list[bytes] = []

    def __contains__(self, block_id: bytes) -> bool:
        return block_id in self._own

    def is_own(self, block_id: bytes) -> bool:
        """Whether this engine stored the chunk itself."""
        return self._own.get(block_id, False)

    def add(self, block_id: bytes, *, own: bool = False) -> None:
        self._own[block_id] = own or self.is_own(block_id)
        self._own.move_to_end(block_id)
        if len(self._own) > _MOST_STORED_IDS:
            self._own.popitem(last=False)

    def add_others(self, block_ids: Iterable[bytes]) -> None:
        """`add` for chunks that a look-up found."""
        own = self._own
        for block_id in block_ids:
            own.setdefault(block_id, False)
            own.move_to_end(block_id)
        while len(own) > _MOST_STORED_IDS:
            own.popitem(last=False)

    def lose(self, block_id: bytes) -> None:
        """The chunk turned out to be gone."""
        if self._own.pop(block_id, None) is not None:
            self._lost.append(block_id)

    def discard(self, block_ids: Iterable[bytes]) -> None:
        """These were never stored: a later request may save them."""
        for block_id in block_ids:
            self._own.pop(block_id, None)

    def take_lost(self) -> list[bytes]:
        """Chunks that were stored and turned out to be gone since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def clear(self) -> None:
        self._own.clear()


class RequestTable:
    """`links`: one a space, in rank order; each space has `shards` columns for each of `groups`.

    `engine_block_tokens`: tokens that have whole engine blocks of every group. `group_of`: the
    engine's number of a group → its place in `groups`. `engine_blocks`: for each request, also
    those that Neve leaves alone, one list of engine blocks for each KV cache group.
    """

    def __init__(
        self,
        links: Sequence[Link],
        *,
        engine_block_tokens: int,
        shards: int = 1,
        groups: Sequence[KvGroup] = (),
        attestation: Attestation | None = None,
    ) -> None:
        """`attestation`: None unless this engine is to be in a family."""
        self.links = links
        self.attestation = attestation
        self.engine_block_tokens = engine_block_tokens
        self.groups = groups or [KvGroup((), None, engine_block_tokens)]
        self.group_of = {group.number: place for place, group in enumerate(self.groups)}
        self.columns = shards * len(self.groups)  # of one space
        self.is_split = is_split(self.groups)
        self.shards = shards
        self.requests: dict[str, Request] = {}
        self.stored = StoredChunks()
        self.engine_blocks: dict[str, list[list[int]]] = {}
        self._hashers: tuple[BlockHasher, ...] = ()

    def clients(self) -> list[Client] | None:
        """One a space; None unless all are connected. May be called from any thread."""
        clients = [link.client for link in self.links]
        present = [client for client in clients if client is not None]
        return present if present and len(present) == len(clients) else None

    def count(self, counters: Mapping[str, int]) -> None:
        """Counts once for the engine, in the figures of its first space, if that is connected."""
        client = self.links[0].client
        if client is not None and any(counters.values()):
            client.stats.count(**counters)

    def chain_of(self, request: Request) -> Chain | None:
        """The request's chain; None until every space is connected for the first time."""
        if request.chain is None:
            if not self._hashers:
                clients = self.clients()
                if clients is None:
                    return None
                self._hashers = tuple(client.hasher for client in clients)
            request.chain = Chain(
                request.tokens,
                self._hashers,
                self._origin(request),
                shards=self.shards,
                groups=len(self.groups),
            )
        return request.chain

    def _origin(self, request: Request) -> Origin:
        """Whose chain the request's blocks belong to. Sets `shares` or `probes` of the request.

        KV of adapters and media depends on more weights than the proof covers.
        """
        request.shares = request.probes = False
        if self.attestation is None:
            return request.origin
        state = self.attestation.state()
        if state is MemberState.PRODUCER:
            request.shares = True
            return request.origin
        plain = request.engine.lora is None and not request.engine.media
        if plain and state is MemberState.ATTACHED:
            request.shares = self.attestation.has_shared = True
        elif plain and state is MemberState.ATTESTING and not request.never_probes:
            waits = request.handover is not None
            hands_over = request.params is not None and request.params.hands_over
            request.probes = not (waits or hands_over)
        if request.shares or request.probes:
            return Origin(request.engine.salt)
        origin = request.origin
        return replace(origin, lora=self.attestation.own_mark() + origin.lora)

    def may_share(self, request: Request) -> bool:
        """False if the request's chain is the family's and this engine was detached meanwhile.

        Also False if the KV would count as the engine's own, but follows on KV of the family that
        the engine's prefix cache kept from the time before the detachment.
        """
        if self.attestation is None:
            return True
        if self.attestation.state() in (MemberState.PRODUCER, MemberState.ATTACHED):
            return True
        follows = request.local_tokens > 0 and request.engine.lora is None
        return not (request.shares or (self.attestation.has_shared and follows))

    def chain_to_save(self, request: Request) -> Chain | None:
        """As `chain_of`, for blocks that were computed: only a proof keeps to the family's chain
        before this engine is attached."""
        chain = self.chain_of(request)
        if request.probes and not request.computes_all:
            self.leave_family(request)
            return self.chain_of(request)
        return chain

    def leave_family(self, request: Request) -> None:
        """A request that `probes` found nothing to compare: it goes on with the engine's own KV."""
        request.never_probes, request.probes = True, False
        request.chain = request.lookup = None

    def of_group(self, row: Sequence[T], group: int) -> tuple[T, ...]:
        """The columns of one group in a chunk's ids or locations: one a space."""
        return tuple(row[group :: len(self.groups)]) if self.is_split else tuple(row)

    def resume(
        self, request: Request, rows: Sequence[Sequence[object | None]], *, first: int
    ) -> Resume:
        """Where the request can go on if `rows` are stored, which begin with chunk `first`.

        With several groups at least one token of the request is computed: a window may no longer
        hold what the last token reads (a window of 1 modulo the engine's block), and a state can't
        be taken back by a token.
        """
        assert request.chain is not None
        if not self.is_split:
            return Resume(len(rows), (len(rows),))
        size = request.chain.chunk_tokens
        groups = range(len(self.groups))
        return resume_at(
            self.groups,
            [
                [None if None in self.of_group(row, group) else row for group in groups]
                for row in rows
            ],
            first=first,
            chunk_tokens=size,
            local_tokens=request.local_tokens,
            most=max(0, self.most_chunks(request) - first),
        )

    def most_chunks(self, request: Request) -> int:
        """Chunks of the request that can be loaded at most: see `resume`."""
        assert request.chain is not None
        tokens = len(request.tokens) - 1 if self.is_split else len(request.tokens)
        return tokens // request.chain.chunk_tokens

    def stored_ids(self, request: Request) -> list[tuple[bytes, ...]]:
        """The request's chain as far as it is known to be stored and a request can go on."""
        ids: list[tuple[bytes, ...]] = []
        if request.chain is not None and self.is_split:
            groups = range(len(self.groups))
            rows = [
                [self.of_group(every, n)[0] in self.stored or None for n in groups]
                for every in request.chain.ids
            ]
            size = request.chain.chunk_tokens
            found = resume_at(self.groups, rows, first=0, chunk_tokens=size, local_tokens=0)
            return request.chain.ids[: found.chunks]
        for every in request.chain.ids if request.chain is not None else ():
            if every[0] not in self.stored:
                break
            ids.append(every)
        return ids

    def put_blocks(
        self, request_id: str, blocks: Sequence[Sequence[int]], *, replaces: bool
    ) -> None:
        """The request got these engine blocks, besides or instead of those that it had."""
        if replaces or request_id not in self.engine_blocks:
            self.engine_blocks[request_id] = [list(group) for group in blocks]
            return
        for own, more in zip(self.engine_blocks[request_id], blocks, strict=True):
            own += more


def wanted(
    table: RequestTable, rows: Sequence[Row], resume: Resume
) -> Sequence[tuple[Location, ...]]:
    """Of each chunk up to where the request goes on, the locations that have to be loaded."""
    if not table.is_split:
        return rows[: resume.chunks]  # type: ignore[return-value]  # complete, and all are needed
    found = []
    for number, row in enumerate(rows[: resume.chunks]):
        groups = [g for g, n in enumerate(resume.needed) if number >= resume.chunks - n]
        columns = (table.of_group(row, group) for group in groups)
        found.append(tuple(at for column in columns for at in column if at is not None))
    return found
