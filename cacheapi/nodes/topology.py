"""Where a node's blocks live, as the handshake answers, and a hash that changes with it."""

import json
from hashlib import blake2b
from typing import Any

from django.conf import settings

from catalog import hot_access, kept_requests
from catalog.models import NodeSession
from neve.formats.keys import tenant_prefix
from planning import samples
from retention.codecs import is_allowed
from retention.models import RetentionPolicy
from tenants.models import ApiKey


def valkey_address(key: ApiKey) -> dict[str, Any]:
    return {
        "seeds": settings.ENV.hot_seeds,
        "tls": settings.ENV.hot_tls,
        **hot_access.user_of(key).login,
    }


def s3_location(tenant_id: int) -> dict[str, Any]:
    return {
        "endpoint": settings.ENV.s3_endpoint,
        "bucket": settings.ENV.s3_bucket,
        "prefix": tenant_prefix(tenant_id),
    }


def topology_hash(key: ApiKey, session: NodeSession, policy: RetentionPolicy) -> str:
    """Changes when a node needs a new handshake: other servers, other buckets, another password,
    another word on its family, or on its lossy codec."""
    assert key.tenant_id is not None  # a node's key
    parts = [valkey_address(key), s3_location(key.tenant_id), settings.ENV.hot_buckets]
    if session.member is not None:
        parts.append([session.member.pk, session.member.generation])
    if not is_allowed(policy.lossy_codecs, session.space.identity):
        parts.append("codec")  # the handshake is refused
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def current_numbers(key: ApiKey, session: NodeSession) -> dict[str, Any]:
    """What may change during a session. Needs the tenant's scope."""
    policy = RetentionPolicy.objects.get()
    return {
        "policy": policy.as_dict(),
        "heartbeat_s": settings.ENV.heartbeat_s,
        "topology": topology_hash(key, session, policy),
        "sample": None if key.tenant is None else samples.terms_of(key.tenant),
        "requests": None if key.tenant is None else kept_requests.terms_of(key.tenant),
    }
