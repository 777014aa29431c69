"""The world of benchmarks/compaction.py on real servers: Flusher and Compactor move the bytes."""

import os
from collections import Counter
from collections.abc import Sequence

from neve.formats import block
from neve.formats.block import HEADER_BYTES, BlockHeader
from neve.index.tier import CommitOutcome, Location
from neve.planner.simulate.segments import Block, Place
from storage import hot
from support.cold_world import World as Tenant
from tenants.scope import tenant_scope
from tiering.compaction.plan import Policy
from tiering.compaction.run import Compactor
from tiering.flush import Flusher


class Real:
    """The world of one tenant of its own."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.moved_bytes = 0
        self.merges: Counter[str] = Counter()
        self._tenant = Tenant(hot_bytes=1 << 29, cold_bytes=1 << 40)

    def flush(self, blocks: Sequence[Block]) -> None:
        tenant, hot_valkey = self._tenant, hot.admin().pipeline(transaction=False)
        for each in blocks:
            payload = os.urandom(each.size_bytes - HEADER_BYTES)
            sum_ = block.checksum(payload)
            tag = tenant.fingerprint[:4]
            header = BlockHeader(each.id, each.parent, 256, len(payload), sum_, tag)
            key = tenant.keys.block(tenant.space.pk, each.id)
            hot_valkey.set(key, block.encode_header(header) + payload, nx=True, px=60_000)
        hot_valkey.execute()
        sizes = [(each.id, each.size_bytes, 256) for each in blocks]
        outcomes = set(tenant.tier.commit(tenant.space.pk, sizes))
        report = Flusher(tenant.tenant.pk).run()
        if outcomes != {CommitOutcome.STORED} or report.blocks != len(blocks):
            raise RuntimeError(f"not all of {len(blocks)} blocks were flushed: {report}")
        tenant.tier.evict(1 << 40)

    def compact(self, now_s: float) -> None:
        report = Compactor(self._tenant.tenant.pk, self.policy).run()
        self.moved_bytes += report.bytes
        self.merges.update(report.merges)

    def expire(self, ids: Sequence[bytes]) -> None:
        self._tenant.tier.expire(ids)

    def places(self, ids: Sequence[bytes]) -> list[Place]:
        found = self._tenant.tier.match(ids)
        return [(each.segment, each.offset) for each in found if isinstance(each, Location)]

    def held(self) -> tuple[int, int, int]:
        with tenant_scope(self._tenant.tenant.pk):
            Compactor(self._tenant.tenant.pk, self.policy).count()
        rows = [row for row in self._tenant.segments() if row.live_bytes]
        live = sum(row.live_bytes for row in rows)
        return len(rows), live, sum(row.size_bytes for row in rows) - live
