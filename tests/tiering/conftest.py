"""Servers and a tenant for tests of tiering."""

import pytest
from django.conf import settings

from storage import s3 as bucket
from tiering import read_ahead, recovery, upload

MIB = 1 << 20


@pytest.fixture
def storage(clean_hot, s3, valkey_bus, transactional_db):
    """An empty hot tier, provisioned and whole, and the bucket."""
    bucket.ensure_bucket()
    recovery.rebuild_all()


@pytest.fixture
def empty_bucket(storage):
    """Without what other tests left in S3."""
    where = {"Bucket": settings.ENV.s3_bucket}
    pages = bucket.client().get_paginator("list_objects_v2")
    for page in pages.paginate(**where):
        for item in page.get("Contents", ()):
            bucket.client().delete_object(**where, Key=item["Key"])


@pytest.fixture
def world(storage):
    from support.cold_world import World  # Django is set up by now

    return World()


@pytest.fixture
def small_parts(monkeypatch):
    """As small as S3 allows, so that a few MiB make many."""
    monkeypatch.setattr(upload, "PART_BYTES", 5 * MIB)
    monkeypatch.setattr(upload, "PARTS_HELD", 2)
    monkeypatch.setattr(read_ahead, "BATCH_BYTES", 1 * MIB)
