"""The node's client: find, load and store KV blocks by their ids.

Trouble in the storage is never an exception here: it is a miss with a reason. Every call that waits
has a deadline; every queue has a bound. A client may be shared by threads.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

from neve import log_events
from neve.datapath.cold import ColdReader
from neve.datapath.finding import Finding
from neve.datapath.hotpath import BlockRef, HotPath
from neve.datapath.loading import Loader
from neve.datapath.local import LocalTier, check_options, empty_unknown
from neve.datapath.payload import payload_of
from neve.datapath.promoting import Promoter
from neve.datapath.status import BreakerState, Status
from neve.datapath.storing import Storer
from neve.datapath.transfer import JobPool, Transfer
from neve.datapath.transport import Transport
from neve.errors import MissReason, Misuse, Refused, Unavailable
from neve.formats.block import MAX_PAYLOAD_BYTES, Buffer
from neve.formats.ids import ID_BYTES, BlockHasher
from neve.formats.parts import PartGroup
from neve.formats.space import MAX_CHUNK_TOKENS, SpaceIdentity
from neve.index.tier import Location, Tier, Usage, decode_match
from neve.node.heartbeat import HeartbeatLoop
from neve.node.membership import Attested, MemberState
from neve.node.session import Endpoint, Session
from neve.node.stats import Stats

__all__ = ["BlockRef", "Client", "Finding", "Location", "Match", "Tier", "Transfer", "connect"]

MATCH_S: Final = 0.2
TRANSFER_S: Final = 5.0
RENEW_S: Final = 3.0  # for addresses of segments, after a heartbeat
# Source: "Best practices design patterns", Amazon S3 user guide: one for each 85–90 MB/s.
CONNECTIONS: Final = 2
COLD_CONNECTIONS: Final = 16
PUT_BYTES_IN_FLIGHT: Final = 256 << 20
GET_BYTES_IN_FLIGHT: Final = 4 << 30  # however many are put meanwhile


@dataclass(frozen=True)
class Match:
    """`locations`: of the consecutive prefix. `miss`: why the next block is missing, or None."""

    locations: list[Location] = field(default_factory=list)
    miss: MissReason | None = None


class Client:
    """One node's view of one space. Make it with `connect`; `close` it when done."""

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session,
        transport: Transport,
        *,
        reopen: Callable[[], Session],
        cold_connections: int = COLD_CONNECTIONS,
        promote: bool = True,
        put_bytes_in_flight: int = PUT_BYTES_IN_FLIGHT,
        shards: int = 1,
        local_dir: Path | None = None,
        local_bytes: int = 0,
    ) -> None:
        """`reopen` makes the handshake that gave `session` again. See `connect`."""
        self.stats = Stats()
        self._shards = shards
        self.hasher = BlockHasher(session.fingerprint, session.chunk_tokens)
        self._endpoint = endpoint
        self._transport = transport
        self._path = HotPath(transport, session, self._ask_rehandshake)
        self._cold_pool = JobPool(cold_connections, "neve-cold")
        self._cold = ColdReader(
            lambda segments, timeout_s: endpoint.segment_urls(
                self.session.id, segments, timeout_s=timeout_s
            ),
            stats=self.stats,
        )
        self.local = (
            None
            if local_dir is None
            else LocalTier(
                local_dir,
                local_bytes,
                endpoint_url=endpoint.url,
                api_key=endpoint.api_key,
                session=session,
                stats=self.stats,
                is_open=lambda: self._path.suspended_for is None,
            )
        )
        self._heartbeats = HeartbeatLoop(
            endpoint,
            reopen,
            self._path,
            self.stats,
            after_beat=lambda: self._cold.renew_addresses(RENEW_S),
            on_unknown_key=lambda: self.local.revoke() if self.local else None,
        )
        self._storer = Storer(self._path, stats=self.stats, most_bytes=put_bytes_in_flight)
        self._loader = Loader(
            self._path,
            self._cold,
            cold_pool=self._cold_pool,
            cold_streams=cold_connections,
            stats=self.stats,
            promoter=Promoter(self._path, self._storer.promote) if promote else None,
            local=self.local,
        )
        self._heartbeats.start()

    @classmethod
    def connect(
        cls,
        endpoint_url: str,
        api_key: str,
        identity: SpaceIdentity,
        *,
        node: str,
        engine: Mapping[str, str | int],
        space: str | None = None,
        family: Mapping[str, str] | None = None,
        selective_weights: str = "",
        max_chunk_tokens: int = MAX_CHUNK_TOKENS,
        connections: int = CONNECTIONS,
        cold_connections: int = COLD_CONNECTIONS,
        promote: bool = True,
        put_bytes_in_flight: int = PUT_BYTES_IN_FLIGHT,
        shards: int = 1,
        groups: Sequence[PartGroup] = (),
        local_dir: str | None = None,
        local_bytes: int | None = None,
        near_stores: Sequence[str] = (),
    ) -> Self:
        """Makes the handshake. Raises `Refused` (fix it first) or `Unavailable` (try later).

        `family`, `selective_weights`: see `Endpoint.open_session`. With a family, the session's
        space is another engine's: only `neve.engine.attest` knows which blocks may be used.
        `connections`: to each Valkey, for block bytes; short calls use another one.
        `cold_connections`: to S3, which is as many ranges as are read at a time.
        `promote`: whether blocks that are read from S3 again are put back into the hot tier.
        `put_bytes_in_flight`: of payloads; more is dropped and counted.
        `shards`: blocks that one chunk is cut into, so that its tokens are counted once.
        `local_dir`, `local_bytes`: an absolute path and a size; both or none. Blocks that are used
        a second time are kept there (`neve.datapath.local`). Engines of one host may share it.
        `groups`, `near_stores`: see `Endpoint.open_session`.
        """
        folder = check_options(local_dir, local_bytes)
        endpoint = Endpoint(endpoint_url, api_key)
        open_session = partial(
            endpoint.open_session,
            identity,
            node=node,
            instance=uuid4().hex,
            engine=engine,
            space=space,
            family=family,
            selective_weights=selective_weights,
            max_chunk_tokens=max_chunk_tokens,
            groups=groups,
            near_stores=near_stores,
        )
        try:
            session = open_session()
        except Refused as error:
            if folder is not None and error.status == 401:
                empty_unknown(folder, api_key)
            raise
        return cls(
            endpoint,
            session,
            Transport(
                session.valkey,
                connections=connections,
                most_bytes=GET_BYTES_IN_FLIGHT + put_bytes_in_flight,
            ),
            reopen=open_session,
            cold_connections=cold_connections,
            promote=promote,
            put_bytes_in_flight=put_bytes_in_flight,
            shards=shards,
            local_dir=folder,
            local_bytes=local_bytes or 0,
        )

    @property
    def session(self) -> Session:
        """The session of now; a renewed handshake gives another one."""
        return self._path.session

    @property
    def breaker(self) -> BreakerState:
        """Of the hot tier."""
        return self._path.breaker

    def match(
        self, ids: Sequence[bytes], *, tail_tokens: int = 0, deadline_s: float = MATCH_S
    ) -> Match:
        """Where the longest stored prefix of a chain is. One round trip per bucket.

        `tail_tokens`: of the prompt, after its last whole block; they are only counted. Never
        raises on trouble: then nothing is found, for the reason TIMEOUT or BREAKER.
        """
        if tail_tokens:
            self.stats.count(tail_tokens=tail_tokens)
        if not ids:
            return Match()
        _check_ids(ids)
        found = self._match(ids, time.monotonic() + deadline_s)
        tokens = len(ids) * self.session.chunk_tokens // self._shards
        self.stats.count(requested_blocks=len(ids), requested_tokens=tokens)
        if found.miss is not None:
            self.stats.miss(found.miss, len(ids) - len(found.locations))
        return found

    def _match(self, ids: Sequence[bytes], deadline: float) -> Match:
        if self._path.suspended_for is not None:
            return Match(miss=self._path.suspended_for)
        try:
            status, rows = self._path.match(ids, deadline=deadline)
            answers = decode_match(rows)
        except Exception:  # a boundary: an answer that cannot be read must not stop the engine
            log_events.MATCH_UNREADABLE.log(exc_info=True)
            return Match(miss=MissReason.BREAKER)
        prefix: list[Location] = []
        for answer in self._with_local(ids, answers):
            if isinstance(answer, MissReason):
                return Match(prefix, answer)
            prefix.append(answer)
        return Match(prefix, None if status is Status.OK else status.miss)

    def match_again(self, ids: Sequence[bytes], *, deadline_s: float = MATCH_S) -> Match:
        """`match` without counting it, for callers that poll."""
        _check_ids(ids)
        return self._match(ids, time.monotonic() + deadline_s) if ids else Match()

    def locate(
        self, ids: Sequence[bytes], *, deadline_s: float = MATCH_S
    ) -> list[Location | MissReason]:
        """Where each block is, whatever the others are. One round trip per bucket.

        Unlike `match` it raises a `NeveError` when the index cannot be asked.
        """
        answers = self.locate_again(ids, deadline_s=deadline_s)
        self.stats.count(
            requested_blocks=len(ids), requested_tokens=len(ids) * self.session.chunk_tokens
        )
        for reason, blocks in Counter(a for a in answers if isinstance(a, MissReason)).items():
            self.stats.miss(reason, blocks)
        return answers

    def locate_again(
        self, ids: Sequence[bytes], *, deadline_s: float = MATCH_S
    ) -> list[Location | MissReason]:
        """`locate` for a caller that counts by itself."""
        _check_ids(ids)
        answers = self._path.tier(time.monotonic() + deadline_s).match(ids)
        return self._with_local(ids, answers)

    def find_many(
        self,
        ids: Sequence[bytes],
        *,
        tokens: Sequence[int] | None = None,
        deadline_s: float = MATCH_S,
    ) -> Finding:
        """`locate` for callers that must not wait: returns at once. Raises `Misuse` only.

        `tokens`: how many each block counts as asked for; by default its share of a chunk. All
        buckets are asked at the same time.
        """
        _check_ids(ids)
        if tokens is None:
            tokens = [self.session.chunk_tokens // self._shards] * len(ids)
        local = self.local

        def refine(id_: bytes, location: Location) -> Location:
            has_copy = local is not None and local.has(id_)
            return location._replace(is_local=True) if has_copy else location

        def count(outcomes: Sequence[MissReason | None]) -> None:
            self.stats.count(requested_blocks=len(ids), requested_tokens=sum(tokens))
            for reason, blocks in Counter(o for o in outcomes if o is not None).items():
                self.stats.miss(reason, blocks)

        deadline = time.monotonic() + deadline_s
        finding = Finding(ids, deadline, refine=refine if local else None)
        finding.before_done(count)
        self._path.find(finding, ids)
        finding.end_job()
        return finding

    def _with_local(
        self, ids: Sequence[bytes], answers: list[Location | MissReason]
    ) -> list[Location | MissReason]:
        """Marks those of `answers`, of the first `ids`, that the local tier has."""
        if (local := self.local) is None:
            return answers
        return [
            answer._replace(is_local=True)
            if isinstance(answer, Location) and local.has(id_)
            else answer
            for id_, answer in zip(ids, answers, strict=False)
        ]

    def get_many(
        self,
        ids: Sequence[bytes],
        buffers: Sequence[Buffer],
        *,
        locations: Sequence[Location],
        tokens: Sequence[int] | None = None,
        deadline_s: float = TRANSFER_S,
    ) -> Transfer:
        """Loads blocks that `match` found into `buffers`; returns at once.

        `tokens`: how many each block counts as reused once it came; by default its share of a
        chunk.

        Each buffer is writable, contiguous or a `neve._core.Scattered`, exactly one payload long,
        and belongs to the client until the transfer is done. Where the outcome is not None it may
        hold garbage. Raises `Misuse` only.
        """
        if tokens is None:
            tokens = [self.session.chunk_tokens // self._shards] * len(ids)
        if not len(ids) == len(buffers) == len(locations) == len(tokens):
            raise Misuse(
                f"need one of each, got {len(ids)} ids, {len(buffers)} buffers, "
                f"{len(locations)} locations, {len(tokens)} tokens"
            )
        _check_ids(ids)
        payloads = [payload_of(buffer) for buffer in buffers]
        if any(isinstance(payload, memoryview) and payload.readonly for payload in payloads):
            raise Misuse("must be writable", field="buffers")
        return self._loader.load(ids, payloads, locations, tokens, deadline_s=deadline_s)

    def put_many(
        self,
        blocks: Sequence[BlockRef],
        buffers: Sequence[Buffer],
        *,
        deadline_s: float = TRANSFER_S,
    ) -> Transfer:
        """Stores one payload for each block; returns at once. Raises `Misuse` only.

        Outcomes: None (stored, or already there), QUOTA (the tenant's or the server's memory is
        full), BREAKER (not tried: storage in trouble, or too many bytes in flight), TIMEOUT,
        CORRUPT (Valkey holds another value under this id), EVICTED (the value was removed before
        its commit, twice in a row, to make room for another writer's blocks). Buffers must not
        change until the transfer is done.
        """
        if len(blocks) != len(buffers):
            raise Misuse(f"need one of each, got {len(blocks)} blocks, {len(buffers)} buffers")
        _check_ids([block.id for block in blocks])
        _check_ids([block.parent for block in blocks])
        payloads = [payload_of(buffer) for buffer in buffers]
        if not all(0 < len(payload) <= MAX_PAYLOAD_BYTES for payload in payloads):
            raise Misuse(f"need 1 … {MAX_PAYLOAD_BYTES} bytes", field="buffers")
        if self.local:
            self.local.note(block.id for block in blocks)
        return self._storer.store(blocks, payloads, deadline_s=deadline_s)

    def usage(self, *, deadline_s: float = MATCH_S) -> Usage:
        """What the tenant has in both tiers, of all its spaces. Raises a `NeveError` when the index
        cannot be asked. One round trip per bucket."""
        return self._path.tier(time.monotonic() + deadline_s).usage()

    def forget(self, ids: Sequence[bytes], *, tier: Tier = Tier.HOT) -> None:
        """Drops bad copies of one tier from the index, as far as that is possible now."""
        self._path.forget(tier, ids)

    def report_context(
        self,
        name: str,
        ids: Sequence[bytes],
        *,
        tokens: int,
        label: str | None = None,
        labels: Mapping[str, str] | None = None,
        pin_s: float | None = None,
        prompt_tokens: int = 0,
        hit_tokens: int = 0,
    ) -> str:
        """Tells the platform which chain a named context is. Returns the context's id.

        `prompt_tokens`: that its request looked up; `hit_tokens`: of these, loaded from a tier.

        One HTTP request. Raises `Refused`, or `Unavailable`: try later. That also while an ended
        session is being renewed; the ids stay valid.
        """
        context = {
            "session": self.session.id,
            "name": name,
            "block_ids": [id_.hex() for id_ in ids],
            "tokens": tokens,
            "label": label,
            "pin_s": pin_s,
        }
        if labels:  # release 0.2 of the platform knows none
            context["labels"] = dict(labels)
        if prompt_tokens:  # release 0.2 knows none
            context |= {"prompt_tokens": prompt_tokens, "hit_tokens": hit_tokens}
        try:
            return str(self._endpoint.record_context(context).get("id", ""))
        except Refused as error:
            if error.status != 404:
                raise
            self._heartbeats.ask_rehandshake()
            raise Unavailable(f"the session is being renewed ({error})") from error

    def removals(self, cursor: str | None) -> tuple[list[bytes], str, bool]:
        """(ids of blocks of this space that left behind the cursor, the next cursor, whether
        earlier removals are not all known). None: begins now.

        One HTTP request. Raises `Refused`, or `Unavailable`: try later.
        """
        return self._endpoint.removals(self.session.id, cursor)

    def report_attestation(self, found: Attested) -> MemberState:
        """Tells the platform how an attestation goes. Returns the engine's state from now on.

        One HTTP request. Raises `Refused`, or `Unavailable`: try later.
        """
        try:
            return self._endpoint.report_attestation(self.session.id, found)
        except Refused as error:
            if error.status != 404:
                raise
            self._heartbeats.ask_rehandshake()
            raise Unavailable(f"the session is being renewed ({error})") from error

    def close(self, *, deadline_s: float = TRANSFER_S) -> None:
        """Finishes what is under way within `deadline_s`; ends the session with the last counters.

        Later calls find and store nothing.
        """
        deadline = time.monotonic() + deadline_s
        self._cold_pool.close(deadline)
        if self.local:
            self.local.close(deadline)
        self._transport.drain(deadline)
        self._heartbeats.stop(max(0.0, deadline - time.monotonic()) + 1.0)
        self._transport.close()
        self._cold.close()
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_rehandshake(self) -> None:
        self._heartbeats.ask_rehandshake()


connect = Client.connect


def _check_ids(ids: Sequence[bytes]) -> None:
    if not all(len(id_) == ID_BYTES for id_ in ids):
        raise Misuse(f"must have {ID_BYTES} bytes each", field="ids")
