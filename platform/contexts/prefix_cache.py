"""One computation of a space's prefix tree for all who look at it, in whatever web process.

The tree of a space with few contexts is computed while somebody waits. That of a larger one is
computed by a thread, at most a REST_TIMES-th of the time; meanwhile readers get the last one.
Without valkey-bus each process computes and keeps its own.
"""

import json
import threading
import time
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from django.core.cache import cache
from django.db import connection
from redis.exceptions import RedisError

from base import log_events
from base.problems import Problem
from catalog.models import Context, Space
from contexts.prefixes import Order, Tree, as_json, from_json, tree
from tenants.scope import tenant_scope

FRESH_S = 2.0
FEW_CONTEXTS = 2_000  # computed in a tenth of a second or two
REST_TIMES = 20
KEPT_S = 3_600
LEASE_S = 120  # a process that dies holds up others so long
WAIT_S = 1.0  # for another's computation of a small space
MOST_KEPT = 16  # trees in this process

_VERSION = 2  # of what is cached


@dataclass(frozen=True)
class _Kept:
    stamp: str  # of its computation
    until: float  # when it is no longer fresh, by time.time()
    tree: Tree


_kept: dict[int, _Kept] = {}
_lock = threading.Lock()


def latest(space: Space) -> Tree | None:
    """The last tree; None while the first one is computed. Raises Problem
    (hot-tier-unavailable)."""
    now, found = time.time(), _read(space)
    if found is not None and now < found.until:
        return found.tree
    with tenant_scope(space.tenant_id):
        is_small = Context.objects.filter(space=space).count() <= FEW_CONTEXTS
    if not is_small:
        if _lease(space):
            threading.Thread(target=_compute_apart, args=(space,), daemon=True).start()
        return None if found is None else found.tree
    if not _lease(space):
        return found.tree if found is not None else _wait(space)
    return _compute(space)


def _wait(space: Space) -> Tree | None:
    """For another's computation."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        time.sleep(0.02)
        if (found := _read(space)) is not None:
            return found.tree
    return None


def _compute_apart(space: Space) -> None:
    try:
        _compute(space)
    except Problem as problem:
        log_events.PREFIX_TREE_FAILED.log(space_id=space.pk, reason=problem.detail)
    finally:
        connection.close()  # this thread's own


def _compute(space: Space) -> Tree:
    began = time.monotonic()
    try:
        found = tree(space)
        rest_s = max(FRESH_S, REST_TIMES * (time.monotonic() - began))
        kept = _Kept(f"{time.time_ns():x}", time.time() + rest_s, found)
        _keep(space.pk, kept)
        _offer(space, kept)
        return found
    finally:
        _release(space)


def _read(space: Space) -> _Kept | None:
    own = _kept.get(space.pk)
    try:
        stamp = cache.get(_name(space, "stamp"))
        if stamp is None or (own is not None and own.stamp == stamp):
            return own
        raw = cache.get(_name(space, "tree"))
    except RedisError:
        return own
    if raw is None:
        return own
    found = _decode(raw)
    _keep(space.pk, found)
    return found


def _keep(space_id: int, kept: _Kept) -> None:
    with _lock:
        _kept.pop(space_id, None)
        while len(_kept) >= MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[space_id] = kept


def _offer(space: Space, kept: _Kept) -> None:
    try:
        cache.set(_name(space, "tree"), _encode(kept), KEPT_S)
        cache.set(_name(space, "stamp"), kept.stamp, KEPT_S)
    except RedisError:
        return


def _lease(space: Space) -> bool:
    try:
        return bool(cache.add(_name(space, "lease"), 1, LEASE_S))
    except RedisError:
        return True


def _release(space: Space) -> None:
    try:
        cache.delete(_name(space, "lease"))
    except RedisError:
        return


def _name(space: Space, what: str) -> str:
    return f"prefixes:{_VERSION}:{space.pk}:{what}"


def _encode(kept: _Kept) -> bytes:
    found, order = kept.tree, kept.tree.order
    facts: dict[str, Any] = {
        "stamp": kept.stamp,
        "until": kept.until,
        "space": found.space_id,
        "at": found.at.isoformat(),
        "estimate": found.is_estimate,
        "contexts": len(order.lengths),
        "root": as_json(found.root),
    }
    head = json.dumps(facts, separators=(",", ":")).encode()
    body = order.uuids + order.shared.tobytes() + order.lengths.tobytes()
    return zlib.compress(len(head).to_bytes(8, "big") + head + body, 1)


def _decode(raw: bytes) -> _Kept:
    whole = zlib.decompress(raw)
    end = 8 + int.from_bytes(whole[:8], "big")
    facts, body = json.loads(whole[8:end]), whole[end:]
    count = facts["contexts"]
    shared, lengths = (
        np.frombuffer(body, np.uint32, count, offset=(16 + 4 * n) * count) for n in (0, 1)
    )
    found = Tree(
        facts["space"],
        datetime.fromisoformat(facts["at"]),
        from_json(facts["root"]),
        facts["estimate"],
        Order(body[: 16 * count], shared, lengths),
    )
    return _Kept(facts["stamp"], facts["until"], found)
