"""Reads leased blocks out of the hot tier, ahead of who takes them, in bounded memory."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.conf import settings

from catalog.models import Space
from neve import _core, block
from neve.errors import Unavailable
from neve.hot import DirtyBlock, HotTier, Tier
from neve.status import Status
from neve.transport import Transport, ValkeyAddress, make_keyspace
from workers.batches import cut_batches
from workers.segments import StoredBlock

log = logging.getLogger("neve.flush")

READ_BYTES = 8 << 20  # of one batch; a single larger block is a batch of its own
BATCHES_HELD = 3  # one is being taken, the others are on their way
READ_S = 30.0


@dataclass
class _Batch:
    """A batch under way: `raws` are whole blocks in one buffer, `headers` 64 bytes for each."""

    blocks: Sequence[DirtyBlock]
    raws: list[memoryview]
    headers: memoryview
    deadline: float
    transfer: _core.Transfer


class HotReader:
    """Reads for one tenant. Not for threads; call `close` in the end."""

    def __init__(self, tenant_id: int, tier: HotTier) -> None:
        self.unreadable_blocks = 0
        self._tenant_id = tenant_id
        self._tier = tier
        self._transport = Transport(_address())

    def read(self, space: Space, blocks: Sequence[DirtyBlock]) -> Iterator[StoredBlock]:
        """Yields the blocks of this space whose bytes are right; the index forgets the others.

        The bytes of one are there until the next is asked for. Raises `Unavailable`.
        """
        fingerprint = bytes.fromhex(space.fingerprint)
        keys = make_keyspace(self._tenant_id, settings.ENV.hot_buckets, space.pk, fingerprint)
        batches = cut_batches(blocks, READ_BYTES)
        largest = max((sum(dirty.size_bytes for dirty in batch) for batch in batches), default=0)
        buffers = [memoryview(bytearray(largest)) for _ in range(min(BATCHES_HELD, len(batches)))]
        ahead: list[_Batch] = []
        try:
            for n, batch in enumerate(batches):
                if len(ahead) == BATCHES_HELD:
                    yield from self._finish(ahead.pop(0))
                ahead.append(self._start(keys, batch, buffers[n % BATCHES_HELD]))
            while ahead:
                yield from self._finish(ahead.pop(0))
        finally:  # nobody writes into the buffers when they are gone
            for late in ahead:
                late.transfer.cancel()
                late.transfer.wait(late.deadline + READ_S)

    def close(self) -> None:
        self._transport.close()

    def _start(
        self, keys: _core.Keyspace, batch: Sequence[DirtyBlock], buffer: memoryview
    ) -> _Batch:
        raws, at = [], 0
        for dirty in batch:
            raws.append(buffer[at : at + dirty.size_bytes])
            at += dirty.size_bytes
        headers = memoryview(bytearray(block.HEADER_BYTES * len(batch)))
        deadline = time.monotonic() + READ_S
        transfer = self._transport.get(
            keys,
            [dirty.id for dirty in batch],
            [raw[block.HEADER_BYTES :] for raw in raws],
            deadline=deadline,
            touch=False,
            headers=headers,
        )
        return _Batch(batch, raws, headers, deadline, transfer)

    def _finish(self, batch: _Batch) -> Iterator[StoredBlock]:
        batch.transfer.wait(batch.deadline + READ_S)
        bad = []
        for i, (dirty, raw, said) in enumerate(
            zip(batch.blocks, batch.raws, batch.transfer.statuses(), strict=True)
        ):
            status = Status(said)
            if status is Status.OK:
                head = batch.headers[i * block.HEADER_BYTES : (i + 1) * block.HEADER_BYTES]
                raw[: block.HEADER_BYTES] = head
                yield StoredBlock(block.decode_header(head), raw, dirty.expires_s, dirty.stored_s)
            elif status in (Status.EVICTED, Status.CORRUPT):
                name = status.name.lower()
                log.warning("unreadable tenant=%s id=%s %s", self._tenant_id, dirty.id.hex(), name)
                bad.append(dirty.id)
            else:  # the server is in trouble, not the block: leases end, and it is tried again
                raise Unavailable(f"valkey: {batch.transfer.trouble or status.name.lower()}")
        if bad:
            self.unreadable_blocks += self._tier.forget(Tier.HOT, bad)


def _address() -> ValkeyAddress:
    """The hot Valkey as the services know it."""
    url = urlsplit(settings.ENV.hot_url)
    return ValkeyAddress(
        (f"{url.hostname}:{url.port or 6379}",), settings.ENV.hot_tls, url.username, url.password
    )
