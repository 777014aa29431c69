"""A tenant with a space: stores blocks as a node does, and reads their index entries."""

import os

from django.conf import settings

from catalog import sessions
from contexts import services as contexts
from neve.formats import block
from neve.formats.block import HEADER_BYTES, BlockHeader
from neve.formats.keys import BucketKeys
from neve.formats.space import SpaceIdentity
from neve.index.scan import scan
from neve.index.tier import CommitOutcome
from retention.services import add_rule, set_policy
from storage import hot
from support.rows import make_session, make_space, make_tenant
from tenants.audit import Actor
from tenants.scope import tenant_scope

PAYLOAD_BYTES = 1000
SIZE = HEADER_BYTES + PAYLOAD_BYTES
ACTOR = Actor("ann", "req-1")


class World:
    """A tenant with a space and one node session."""

    def __init__(self, **policy):
        self.tenant = make_tenant(hot_bytes=1 << 22, cold_bytes=1 << 22)
        self.space = make_space(self.tenant)
        self.session = make_session(self.space)
        self.tier = hot.hot_tier(self.tenant.pk)
        self.set(**policy)

    def set(self, **policy):
        return set_policy(tenant=self.tenant, actor=ACTOR, **policy)

    def rule(self, **fields):
        return add_rule(tenant=self.tenant, actor=ACTOR, **fields)

    def store(self, count, space=None):
        return self.store_as([os.urandom(16) for _ in range(count)], space)

    def store_as(self, ids, space=None):
        space = space or self.space
        tag = bytes.fromhex(space.fingerprint)[:4]
        for id_ in ids:
            payload = os.urandom(PAYLOAD_BYTES)
            header = BlockHeader(id_, bytes(16), 256, len(payload), block.checksum(payload), tag)
            key = BucketKeys(self.tenant.pk, 0).block(space.pk, id_)
            hot.admin().set(key, block.encode_header(header) + payload, nx=True, px=60_000)
        outcomes = self.tier.commit(space.pk, [(id_, SIZE, 256) for id_ in ids])
        assert set(outcomes) == {CommitOutcome.STORED}
        return ids

    def record(self, name, ids, label=None, pin_s=None):
        with tenant_scope(self.tenant.pk):
            return contexts.record(
                session=self.session,
                name=name,
                ids=ids,
                tokens=256 * len(ids),
                label=label,
                pin_s=pin_s,
                actor=ACTOR,
            )[0]

    def entries(self, ids):
        pages = scan(hot.admin().execute_command, self.tenant.pk, settings.ENV.hot_buckets)
        known = {entry.id: entry for page in pages for entry in page.entries}
        return [known[id_] for id_ in ids]

    def lives(self, ids):
        """(seconds from storing to expiry, 0 for never; priority) of each block."""
        return [
            (entry.expires_s - entry.stored_s if entry.expires_s else 0, entry.priority)
            for entry in self.entries(ids)
        ]

    def open_session(self):
        """Open a node session with the space's layout."""
        return sessions.open_session(
            tenant=self.tenant,
            node="node-1",
            engine={},
            identity=SpaceIdentity.from_dict(self.space.identity),
            space_name=None,
            max_chunk_tokens=256,
            actor=ACTOR,
        )
