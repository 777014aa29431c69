"""Servers and a tenant for tests of the workers."""

import pytest

from controlplane import s3 as bucket
from workers import recovery


@pytest.fixture
def storage(clean_hot, s3, valkey_bus, transactional_db):
    """An empty hot tier, provisioned and whole, and the bucket."""
    bucket.ensure_bucket()
    recovery.rebuild_all()


@pytest.fixture
def world(storage):
    from cold_world import World  # Django is set up by now

    return World()
