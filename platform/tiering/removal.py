"""Deletes spaces and tenants that are marked for removal: blocks, then segments, then rows.

Each step may be repeated. The row goes last, so its mark leads back to a removal that crashed.
Bytes are refunded block by block, so quotas are right at any moment.
"""

from django.conf import settings

from base import log_events
from catalog.models import Segment, Space
from catalog.stores import Stores, everywhere
from neve.formats.keys import BucketKeys, tenant_prefix
from storage import hot, hot_servers
from storage.hot import scan_tenant
from storage.s3 import Bucket
from tenants.models import Tenant
from tenants.scope import tenant_scope


def remove_space(tenant_id: int, space_id: int) -> int:
    """Returns how many blocks left the index. Raises the errors of Valkey, S3 and the database."""
    removed = _remove_blocks(tenant_id, space_id)
    stores = Stores()
    with tenant_scope(tenant_id):
        segments = Segment.objects.filter(space_id=space_id)
        for row in segments:
            for object_ in everywhere(row, stores):
                object_.delete()
            segments.filter(pk=row.pk).delete()
            hot.hot_tier(tenant_id).close_segments([row.pk])
        # Blocks that a node stored meanwhile: it learns of its end with its next heartbeat.
        removed += _remove_blocks(tenant_id, space_id)
        Space.objects.filter(pk=space_id).delete()
    log_events.SPACE_REMOVED.log(tenant_id=tenant_id, space_id=space_id, blocks=removed)
    return removed


def remove_tenant(tenant_id: int) -> int:
    """Returns how many blocks left the index. Its audit trail stays, without the tenant."""
    with tenant_scope(tenant_id):
        spaces = list(Space.objects.values_list("pk", flat=True))
    removed = sum(remove_space(tenant_id, space_id) for space_id in spaces)
    removed += _remove_blocks(tenant_id, None)
    for bucket in range(settings.ENV.hot_buckets):
        hot_servers.admin().unlink(*BucketKeys(tenant_id, bucket).all_bookkeeping)
    stores = Stores()
    for store_id in stores.rows:
        _delete_objects(stores.bucket(store_id), tenant_prefix(tenant_id))
    Tenant.objects.filter(pk=tenant_id).delete()
    log_events.TENANT_REMOVED.log(tenant_id=tenant_id, blocks=removed)
    return removed


def _remove_blocks(tenant_id: int, space_id: int | None) -> int:
    """Blocks of one space, or of all, pinned ones too."""
    tier, removed = hot.hot_tier(tenant_id), 0
    for page in scan_tenant(tenant_id):
        ids = [e.id for e in page.entries if space_id in (None, e.space_id)]
        removed += tier.expire(ids, also_pinned=True)[0]
    return removed


def _delete_objects(bucket: Bucket, prefix: str) -> None:
    """Everything below one tenant's prefix in one store, with or without a row."""
    pages = bucket.client.get_paginator("list_objects_v2")
    for page in pages.paginate(**bucket.where, Prefix=prefix):
        for item in page.get("Contents", ()):
            bucket.object(item["Key"]).delete()
