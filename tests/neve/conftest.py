"""A client over `valkey_hot` and a small cache endpoint."""

from collections.abc import Iterator

import pytest

from neve.datapath.client import Client
from neve.index.tier import HotTier
from support.cache_endpoint import CacheEndpoint
from support.chains import connect, provision
from support.servers import ValkeyServer


@pytest.fixture
def hot(clean_hot: ValkeyServer) -> HotTier:
    return provision(clean_hot)


@pytest.fixture
def endpoint(clean_hot: ValkeyServer) -> Iterator[CacheEndpoint]:
    with CacheEndpoint(f"127.0.0.1:{clean_hot.port}") as endpoint:
        yield endpoint


@pytest.fixture
def client(hot: HotTier, endpoint: CacheEndpoint) -> Iterator[Client]:
    with connect(endpoint) as client:
        yield client
