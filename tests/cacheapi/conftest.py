"""A tenant, a node of it, and what a good handshake says."""

from typing import Any

import pytest

from support.caller import Caller
from support.rows import IDENTITY, make_key, make_tenant
from tenants.models import Tenant

HANDSHAKE = {
    "node": "gpu-07",
    "engine": {"name": "vllm", "version": "0.32.0"},
    "identity": IDENTITY,
    "space": None,
    "max_chunk_tokens": 256,
}


@pytest.fixture
def tenant(db) -> Tenant:
    return make_tenant("acme")


@pytest.fixture
def node(tenant) -> Caller:
    return Caller(make_key(tenant, "node"))


@pytest.fixture
def team(tenant) -> Caller:
    return Caller(make_key(tenant, "team"))


@pytest.fixture
def operator(db) -> Caller:
    return Caller(make_key(None, "operator"))


@pytest.fixture
def handshake() -> dict[str, Any]:
    return HANDSHAKE
