"""A tenant whose blocks move through all tiers, for tests of workers on real servers."""

import os
from uuid import uuid4

from django.conf import settings

from catalog.models import Segment, Space
from neve.formats import block
from neve.formats.block import HEADER_BYTES, BlockHeader
from neve.formats.keys import BucketKeys
from neve.formats.space import SpaceIdentity
from neve.index.tier import CommitOutcome, Location
from storage import hot
from storage import s3 as bucket
from tenants.scope import tenant_scope
from tenants.services import create_tenant

PAYLOAD_BYTES = 50_000


class World:
    """A tenant with one space. Stores and reads blocks as a node does."""

    def __init__(self, *, hot_bytes=1 << 26, cold_bytes=1 << 26):
        self.tenant = create_tenant(
            slug=f"t{uuid4().hex[:8]}",
            name="T",
            hot_bytes=hot_bytes,
            cold_bytes=cold_bytes,
            overcommit=True,
        )
        self.add_space("s")
        self.keys = BucketKeys(self.tenant.pk, 0)
        self.tier = hot.hot_tier(self.tenant.pk)
        self.payloads: dict[bytes, bytes] = {}

    def add_space(self, name):
        """Make a space. Later calls store blocks into it."""
        identity = SpaceIdentity("m", name, "f32", "f32", "l", 1, 16, 4096)
        self.fingerprint = identity.fingerprint(tenant_id=self.tenant.pk, chunk_tokens=256)
        with tenant_scope(self.tenant.pk):
            self.space = Space.objects.create(
                name=name,
                fingerprint=self.fingerprint.hex(),
                identity=identity.as_dict(),
                chunk_tokens=256,
            )

    def store(self, count, *, parent=bytes(16), payload_bytes=PAYLOAD_BYTES):
        """Store a chain of `count` new blocks after `parent`; return their ids."""
        ids = []
        for _ in range(count):
            id_, payload = os.urandom(16), os.urandom(payload_bytes)
            sum_ = block.checksum(payload)
            header = BlockHeader(id_, parent, 256, len(payload), sum_, self.fingerprint[:4])
            value = block.encode_header(header) + payload
            hot.admin().set(self.keys.block(self.space.pk, id_), value, nx=True, px=60_000)
            self.payloads[id_] = payload
            ids.append(id_)
            parent = id_
        sizes = [(id_, HEADER_BYTES + payload_bytes, 256) for id_ in ids]
        assert set(self.tier.commit(self.space.pk, sizes)) == {CommitOutcome.STORED}
        return ids

    def assert_readable_from_s3(self, ids):
        for id_, place in zip(ids, self.tier.match(ids), strict=True):
            assert isinstance(place, Location)
            assert place.is_cold
            row = Segment.unscoped.get(pk=place.segment)
            span = f"bytes={place.offset}-{place.offset + place.size_bytes - 1}"
            got = bucket.client().get_object(
                Bucket=settings.ENV.s3_bucket, Key=row.object_key, Range=span
            )
            raw = got["Body"].read()
            block.verify(raw, raw[HEADER_BYTES:], expect_id=id_)
            assert raw[HEADER_BYTES:] == self.payloads[id_]

    def segments(self):
        with tenant_scope(self.tenant.pk):
            return list(Segment.objects.all())
