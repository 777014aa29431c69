"""A tenant, a node of it, and what a good handshake says."""

from typing import Any

import pytest
from django.test import Client

from support.rows import IDENTITY, make_key, make_tenant
from tenants.models import Tenant

HANDSHAKE = {
    "node": "gpu-07",
    "engine": {"name": "vllm", "version": "0.32.0"},
    "identity": IDENTITY,
    "space": None,
    "max_chunk_tokens": 256,
}


class Caller(Client):
    """Sends JSON with an API key (None: without)."""

    def __init__(self, key: str | None) -> None:
        super().__init__(headers={"Authorization": f"Bearer {key}"} if key else {})

    def send(self, method: str, path: str, body: Any = None, **kwargs: Any):
        if body is None:  # no body at all, where `post` would send an empty form
            return self.generic(method.upper(), path, **kwargs)
        kwargs |= {"data": body, "content_type": "application/json"}
        return getattr(self, method.lower())(path, **kwargs)


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
