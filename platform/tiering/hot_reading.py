"""Reads leased blocks out of the hot tier, along their chains."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.conf import settings
from valkey.connection import parse_url

from base import log_events
from catalog.models import Space
from neve import _core
from neve.datapath.status import Status
from neve.datapath.transport import ReplyError, Transport, make_keyspace
from neve.errors import Corrupt, Unavailable
from neve.formats import block
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.tier import DirtyBlock, HotTier, Tier
from neve.node.address import ValkeyAddress
from storage.addresses import each_url
from tiering.read_ahead import read_ahead
from tiering.segments import StoredBlock

BATCHES_HELD = 3  # one is consumed, the others are being read
READ_S = 30.0


@dataclass(frozen=True)
class LinkedBlock:
    """A leased block and its parent; `size_bytes` 0 if its header is wrong."""

    dirty: DirtyBlock
    parent: bytes

    @property
    def id(self) -> bytes:
        return self.dirty.id

    @property
    def size_bytes(self) -> int:
        return self.dirty.size_bytes


class HotReader:
    """Reads for one tenant. Not for threads; call `close` at the end. Raises `Unavailable`."""

    def __init__(self, tenant_id: int, tier: HotTier) -> None:
        self.unreadable_blocks = 0
        self._tenant_id = tenant_id
        self._tier = tier
        self._transport = Transport(_address())

    def link(self, blocks: Sequence[DirtyBlock]) -> list[LinkedBlock]:
        """Looks the blocks' parents up, in the same order: reads their headers only.

        The index forgets blocks whose values have another length than their entries say: an entry
        that a hostile node wrote must not make the worker take gigabytes of memory.
        """
        heads = self._ask(
            [("GETRANGE", self._key(dirty), 0, block.HEADER_BYTES - 1) for dirty in blocks]
        )
        lengths = self._ask([("STRLEN", self._key(dirty)) for dirty in blocks])
        found = list(zip(blocks, heads, lengths, strict=True))
        if bad := [dirty for dirty, _, length in found if length != dirty.size_bytes]:
            self.forget(bad, [Status.CORRUPT] * len(bad))
        return [
            LinkedBlock(dirty, _parent_of(head))
            for dirty, head, length in found
            if length == dirty.size_bytes
        ]

    def _ask(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[object]:
        """The replies; None where the server refuses the command: the key is of another type."""
        deadline = time.monotonic() + READ_S
        try:
            return self._transport.execute_many(commands, deadline=deadline)
        except ReplyError:
            if len(commands) == 1:
                return [None]
        half = len(commands) // 2
        return self._ask(commands[:half]) + self._ask(commands[half:])

    def read(self, space: Space, blocks: Sequence[LinkedBlock]) -> Iterator[StoredBlock]:
        """Yields the blocks of this space whose bytes are right; the index forgets the others.

        A block's bytes stay valid until the caller takes the next block.
        """
        fingerprint = bytes.fromhex(space.fingerprint)
        keys = make_keyspace(self._tenant_id, settings.ENV.hot_buckets, space.pk, fingerprint)
        tag = fingerprint[:4]

        def start(batch: Sequence[LinkedBlock], rooms: list[memoryview]) -> "_HotReading":
            return _HotReading(self, keys, tag, [linked.dirty for linked in batch], rooms)

        return read_ahead(blocks, start, at_once=BATCHES_HELD)

    def _key(self, dirty: DirtyBlock) -> bytes:
        bucket = bucket_of(dirty.id, settings.ENV.hot_buckets)
        return BucketKeys(self._tenant_id, bucket).block(dirty.space_id, dirty.id)

    def get(
        self,
        keys: _core.Keyspace,
        ids: Sequence[bytes],
        payloads: Sequence[memoryview],
        headers: memoryview,
    ) -> _core.Batch:
        return self._transport.get(
            keys, ids, payloads, deadline=time.monotonic() + READ_S, touch=False, headers=headers
        )

    def forget(self, blocks: Sequence[DirtyBlock], why: Sequence[Status]) -> None:
        """The index forgets blocks that are damaged or missing."""
        for dirty, status in zip(blocks, why, strict=True):
            log_events.BLOCK_UNREADABLE.log(
                tenant_id=self._tenant_id, id=dirty.id.hex(), status=status.name.lower()
            )
        self.unreadable_blocks += self._tier.forget(Tier.HOT, [dirty.id for dirty in blocks])

    def close(self) -> None:
        self._transport.close()


class _HotReading:
    """One batch that is being read from Valkey."""

    def __init__(
        self,
        reader: HotReader,
        keys: _core.Keyspace,
        tag: bytes,
        batch: Sequence[DirtyBlock],
        rooms: list[memoryview],
    ) -> None:
        self._reader, self._tag, self._batch, self._rooms = reader, tag, batch, rooms
        self._headers = memoryview(bytearray(block.HEADER_BYTES * len(batch)))
        payloads = [room[block.HEADER_BYTES :] for room in rooms]
        self._transfer = reader.get(keys, [d.id for d in batch], payloads, self._headers)

    def blocks(self) -> Iterator[StoredBlock]:
        self._transfer.wait(float("inf"))  # the core keeps the deadline
        statuses = list(map(Status, self._transfer.statuses()))
        for n, status in enumerate(statuses):
            if status is Status.OK:
                found = self._block(n)
                if found.header.space_tag == self._tag:
                    yield found
                else:  # no segment takes a block that names another space
                    statuses[n] = Status.CORRUPT
            elif status not in (Status.EVICTED, Status.CORRUPT):
                # Trouble of the server, not of the block: read again later.
                raise Unavailable(f"valkey: {self._transfer.trouble or status.name.lower()}")
        bad = [n for n, s in enumerate(statuses) if s is not Status.OK]
        if bad:
            self._reader.forget([self._batch[n] for n in bad], [statuses[n] for n in bad])

    def cancel(self) -> None:
        self._transfer.cancel()
        self._transfer.wait(float("inf"))

    def _block(self, n: int) -> StoredBlock:
        head = self._headers[n * block.HEADER_BYTES : (n + 1) * block.HEADER_BYTES]
        self._rooms[n][: block.HEADER_BYTES] = head
        dirty = self._batch[n]
        return StoredBlock(
            block.decode_header(head), self._rooms[n], dirty.expires_s, dirty.stored_s
        )


def _parent_of(head: object) -> bytes:
    try:
        return block.decode_header(head).parent
    except (Corrupt, TypeError):  # reading the whole block finds out what is wrong
        return b""


def _address() -> ValkeyAddress:
    """The hot Valkey, with the administrator's login."""
    urls = each_url(settings.ENV.hot_url)
    login = parse_url(urls[0])
    hosts = [urlsplit(url) for url in urls]
    return ValkeyAddress(
        tuple(f"{host.hostname}:{host.port or 6379}" for host in hosts),
        settings.ENV.hot_tls,
        login.get("username"),
        login.get("password"),
    )
