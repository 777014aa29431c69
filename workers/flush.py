"""Flush: dirty blocks of the hot tier become segments in S3.

    lease → read and verify → upload → read the footer back → row is live → `flushed`

A crash at any point loses nothing: before `flushed` the blocks stay dirty and their lease lapses; a
segment row that never became live is removed by reconcile, and with it the object. Two workers
never hold the same lease, and `flushed` may be repeated. A worker holds one segment in memory,
twice while it uploads.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from urllib.parse import urlsplit
from uuid import uuid4

from django.conf import settings

from catalog.models import Segment, Space
from controlplane import s3
from controlplane.hot import hot_tier
from neve import block, segment
from neve.errors import Corrupt, Unavailable
from neve.hot import DirtyBlock, FlushOutcome, HotTier, Tier, Usage
from neve.keys import segment_key
from neve.status import Status
from neve.transport import Transport, ValkeyAddress, make_keyspace
from tenants.scope import tenant_scope
from workers.objects import footer_of

log = logging.getLogger("neve.flush")

SEGMENT_BYTES = 64 << 20  # the least size that S3 reads well in ranges, and a worker's memory bound
LEASE_BLOCKS = 4096
LEASE_S = 120  # far above one segment's upload; a crashed worker's blocks wait so long
READ_S = 30.0
GATHER_S = 5.0  # what is due waits at most so long for company
DIRTY_SHARE = 0.25  # dirty blocks cannot be evicted: more of them than this make room scarce
PASS_S = 30.0  # then the next pass goes on: no task runs as long as the writes do


@dataclass
class FlushReport:
    """What one pass did. `refused_blocks`: the cold quota had no room for them."""

    segments: int = 0
    blocks: int = 0
    bytes: int = 0
    refused_blocks: int = 0
    unreadable_blocks: int = 0


@dataclass(frozen=True)
class Verified:
    """A block read from the hot tier: its header and all its bytes."""

    header: block.BlockHeader
    raw: memoryview
    expires_s: int
    stored_s: int


@dataclass
class Flusher:
    """Flushes one tenant. Not for threads; many may run at once, in any processes."""

    tenant_id: int
    progress: Callable[[FlushReport], object] = lambda report: None
    report: FlushReport = field(default_factory=FlushReport)

    def run(self) -> FlushReport:
        """Flushes what is due, until nothing is or PASS_S have passed; `progress` after each space.

        Raises what S3, Valkey or the database raise.
        """
        end = time.monotonic() + PASS_S
        tier = hot_tier(self.tenant_id)
        transport = Transport(_address())
        try:
            with tenant_scope(self.tenant_id):
                while time.monotonic() < end and (
                    leased := tier.lease_dirty(
                        lease_s=LEASE_S, most_blocks=LEASE_BLOCKS, most_bytes=SEGMENT_BYTES
                    )
                ):
                    by_space = sorted(leased, key=lambda dirty: dirty.space_id)
                    for space_id, blocks in groupby(by_space, key=lambda dirty: dirty.space_id):
                        self._flush_space(tier, transport, space_id, list(blocks))
                        self.progress(self.report)
        finally:
            transport.close()
        return self.report

    def _flush_space(
        self, tier: HotTier, transport: Transport, space_id: int, leased: list[DirtyBlock]
    ) -> None:
        space = Space.objects.filter(pk=space_id).first()
        if space is None:  # people deleted it: nobody can ask for these blocks any more
            self.report.unreadable_blocks += tier.forget(Tier.HOT, [d.id for d in leased])
            return
        usage = tier.usage()
        fitting, rest = split_at_room(leased, usage.quota_cold_bytes - usage.cold_bytes)
        if rest:
            self.report.refused_blocks += tier.keep_hot([dirty.id for dirty in rest])
        verified = list(self._read(tier, transport, fitting))
        if not verified:
            return
        row, places = self._upload(space, verified)
        outcomes = tier.flushed(row.pk, [(place.id, place.offset) for place in places])
        live = [
            place
            for place, outcome in zip(places, outcomes, strict=True)
            if outcome is FlushOutcome.FLUSHED
        ]
        Segment.objects.filter(pk=row.pk).update(live_bytes=sum(place.length for place in live))
        self.report.refused_blocks += outcomes.count(FlushOutcome.COLD_FULL)
        self.report.segments += 1
        self.report.blocks += len(live)
        self.report.bytes += sum(place.length for place in live)

    def _read(
        self, tier: HotTier, transport: Transport, leased: Sequence[DirtyBlock]
    ) -> Iterator[Verified]:
        """Yields the blocks whose bytes are right; the index forgets the others."""
        if not leased:
            return
        (space_id,) = {dirty.space_id for dirty in leased}
        fingerprint = bytes.fromhex(Space.objects.get(pk=space_id).fingerprint)
        keys = make_keyspace(self.tenant_id, settings.ENV.hot_buckets, space_id, fingerprint)
        raws = [memoryview(bytearray(dirty.size_bytes)) for dirty in leased]
        headers = memoryview(bytearray(block.HEADER_BYTES * len(leased)))
        deadline = time.monotonic() + READ_S
        reading = transport.get(
            keys,
            [dirty.id for dirty in leased],
            [raw[block.HEADER_BYTES :] for raw in raws],
            deadline=deadline,
            touch=False,
            headers=headers,
        )
        reading.wait(deadline + READ_S)
        bad = []
        for i, (dirty, raw, said) in enumerate(zip(leased, raws, reading.statuses(), strict=True)):
            status = Status(said)
            if status is Status.OK:
                head = headers[i * block.HEADER_BYTES : (i + 1) * block.HEADER_BYTES]
                raw[: block.HEADER_BYTES] = head
                yield Verified(block.decode_header(head), raw, dirty.expires_s, dirty.stored_s)
            elif status in (Status.EVICTED, Status.CORRUPT):
                name = status.name.lower()
                log.warning("unreadable tenant=%s id=%s %s", self.tenant_id, dirty.id.hex(), name)
                bad.append(dirty.id)
            else:  # the server is in trouble, not the block: leases lapse, try again
                raise Unavailable(f"valkey: {reading.trouble or status.name.lower()}")
        if bad:
            self.report.unreadable_blocks += tier.forget(Tier.HOT, bad)

    def _upload(
        self, space: Space, verified: Sequence[Verified]
    ) -> tuple[Segment, list[segment.SegmentRow]]:
        """Writes one segment and its row, live once the footer was read back from S3."""
        uuid, fingerprint = uuid4(), bytes.fromhex(space.fingerprint)
        row = Segment.objects.create(
            space=space, uuid=uuid, object_key=segment_key(self.tenant_id, fingerprint, uuid)
        )
        writer = segment.SegmentWriter(segment.SegmentHeader(self.tenant_id, uuid, fingerprint))
        places = [
            writer.add(item.header, expires_s=item.expires_s, stored_s=item.stored_s)
            for item in verified
        ]
        parts = [writer.header.encode(), *(item.raw for item in verified), writer.footer()]
        body = b"".join(parts)
        s3.client().upload_fileobj(io.BytesIO(body), settings.ENV.s3_bucket, row.object_key)
        footer = footer_of(row.object_key)
        if footer.header != writer.header or list(footer.rows) != places:
            raise Corrupt(f"{row.object_key}: S3 gave back another footer than was written")
        row.state, row.blocks, row.size_bytes = Segment.State.LIVE, len(places), len(body)
        row.save(update_fields=["state", "blocks", "size_bytes"])
        return row, places


def is_worth_a_segment(held: Usage, now_s: float) -> bool:
    """Whether to flush now: a segment is full, a block waited long enough, or room is scarce.

    Flushing each block at once would leave S3 with a segment a second.
    """
    if held.oldest_due_s is None or held.oldest_due_s > now_s:
        return False
    return (
        held.dirty_bytes >= SEGMENT_BYTES
        or held.oldest_due_s <= now_s - GATHER_S
        or held.dirty_bytes >= held.quota_hot_bytes * DIRTY_SHARE
    )


def split_at_room(
    leased: Sequence[DirtyBlock], room_bytes: int
) -> tuple[list[DirtyBlock], list[DirtyBlock]]:
    """The blocks that the cold quota has room for, in order, and those behind them."""
    used = 0
    for n, dirty in enumerate(leased):
        used += dirty.size_bytes
        if used > room_bytes:
            return list(leased[:n]), list(leased[n:])
    return list(leased), []


def _address() -> ValkeyAddress:
    """The hot Valkey as the services know it."""
    url = urlsplit(settings.ENV.hot_url)
    return ValkeyAddress(
        (f"{url.hostname}:{url.port or 6379}",), settings.ENV.hot_tls, url.username, url.password
    )
