"""Stores of tests: buckets of the test's S3, or of a second server that may be stopped."""

from uuid import uuid4

from django.conf import settings

from catalog.models import MoveRule, Store
from catalog.stores import default_row, sealed
from storage import s3
from support.servers import S3Server


def make_store(name="archive", server: S3Server | None = None, **fields) -> Store:
    """A store with an empty bucket of its own, on `server` or on the default store's S3."""
    env, bucket = settings.ENV, f"{name}-{uuid4().hex[:8]}"
    keys = (env.s3_access_key, env.s3_secret_key)
    access, secret = (server.access_key, server.secret_key) if server else keys
    endpoint = server.endpoint if server else env.s3_endpoint
    where = s3.Bucket(endpoint, env.s3_region, access, secret, bucket)
    where.ensure()
    return Store.objects.create(
        name=name, endpoint=endpoint, bucket=bucket, region=env.s3_region, access_key=access,
        sealed_secret=sealed(secret), **fields,
    )  # fmt: skip


def make_rule(target: Store, source: Store | None = None, **fields) -> MoveRule:
    """From any other store if `source` is None."""
    fields = {"name": f"to-{target.name}-{uuid4().hex[:4]}"} | fields
    return MoveRule.objects.create(target=target, source=source, **fields)


def rule_back(source: Store, **fields) -> MoveRule:
    return make_rule(default_row(), source, **fields)


def keys_in(store: Store | None) -> set[str]:
    """Of all objects there; None: the default store."""
    from catalog.stores import bucket_of

    bucket = s3.default() if store is None else bucket_of(store)
    pages = bucket.client.get_paginator("list_objects_v2")
    return {
        item["Key"] for page in pages.paginate(**bucket.where) for item in page.get("Contents", ())
    }
