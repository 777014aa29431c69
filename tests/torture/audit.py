"""Counts anew what one tenant holds: drift of the counters, and orphans on every side.

Reads keys and bucket itself, without the code under test. Formats:
docs/formats/hot-tier.md.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from valkey import Valkey

from catalog.models import Segment, SegmentCopy
from neve.formats.keys import BucketKeys, tenant_prefix
from neve.index.scan import decode_entry
from torture.model import Entry, sums

UNCOMMITTED_MS = 60_000
_ENTRY = struct.Struct("<BBHIIIIIII")
_HOT, _COLD, _DIRTY, _UNSTORED = 1, 2, 4, 16


@dataclass(frozen=True)
class Place:
    """A store, read without the proxy in front of it."""

    name: str
    s3: Any
    bucket: str


Places = Mapping[int | None, Place]  # by the store's number; None: the default one


@dataclass
class Findings:
    """`drift_bytes`: counters against the index. `orphans`: one line each."""

    drift_bytes: int = 0
    drifts: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    def drift(self, what: str, said: int, is_: int) -> None:
        if said != is_:
            self.drift_bytes += abs(said - is_)
            self.drifts.append(f"{what}: says {said}, is {is_}")


def index_of(client: Valkey, tenant_id: int) -> dict[bytes, Entry]:
    """The living entries of a tenant with one bucket."""
    keys = BucketKeys(tenant_id, 0)
    entries = {}
    for id_, raw in client.hgetall(keys.bookkeeping[0]).items():
        state, _, _, space, size, _, _, pinned_s, segment, _ = _ENTRY.unpack_from(raw)
        if found := decode_entry(id_, raw):
            entries[id_] = Entry(
                *(bool(state & _HOT), bool(state & _COLD), bool(state & _DIRTY), bool(pinned_s)),
                *(space, size, segment, bool(state & _UNSTORED), found.encoded_size),
            )
    return entries


def audit(client: Valkey, places: Places, tenant_id: int, *, uncounted_bytes: int = 0) -> Findings:
    """Needs an idle platform. `uncounted_bytes`: bytes that a fault hid from the cold quota."""
    found = Findings()
    keys = BucketKeys(tenant_id, 0)
    entries = index_of(client, tenant_id)
    said = {
        k.decode(): int(v) for k, v in client.hgetall(keys.bookkeeping[3]).items() if v.isdigit()
    }
    for name, total in sums(entries.values()).items():
        found.drift(f":u {name}", said.get(name, 0), total)
    quota = {k.decode(): v for k, v in client.hgetall(keys.quota).items()}
    for name, excess_bytes in (("hot_bytes", 0), ("cold_bytes", uncounted_bytes)):
        if said.get(name, 0) > int(quota[name]) + excess_bytes:
            found.orphans.append(f"{name} {said[name]} is over the quota {int(quota[name])}")
    _audit_keys(client, keys, entries, found)
    _audit_sets(client, keys, entries, found)
    scores = client.zrange(keys.live_bytes, 0, -1, withscores=True)
    _audit_segments(places, tenant_id, entries, found, {int(n): int(b) for n, b in scores})
    return found


def remains_of(client: Valkey, places: Places, tenant_id: int) -> list[str]:
    """Keys and objects left of a removed tenant, without keys that expire by themselves."""
    keys = list(client.scan_iter(b"{t%d.*" % tenant_id, count=1000))
    left = [f"key {key!r}" for key in keys if client.pttl(key) == -1]
    left += [f"segment {row.pk}" for row in Segment.unscoped.filter(tenant_id=tenant_id)]
    for place in places.values():
        left += [f"object {key} in {place.name}" for key in _objects_in(place, tenant_id)]
    return left


def _objects_in(place: Place, tenant_id: int) -> set[str]:
    listed = place.s3.list_objects_v2(Bucket=place.bucket, Prefix=tenant_prefix(tenant_id))
    assert not listed["IsTruncated"]
    return {item["Key"] for item in listed.get("Contents", [])}


def _audit_keys(
    client: Valkey, keys: BucketKeys, entries: dict[bytes, Entry], found: Findings
) -> None:
    owned = {keys.block(e.space_id, id_): e for id_, e in entries.items() if e.is_hot}
    there = set(client.scan_iter(keys.tag + b":b:*", count=1000))
    for key in owned.keys() - there:
        found.orphans.append(f"hot without data: {key[-16:].hex()}")
    for key in there:
        left_ms = client.pttl(key)
        if key in owned:
            if client.strlen(key) != owned[key].size_bytes or left_ms != -1:
                found.orphans.append(f"data unlike its entry: {key[-16:].hex()} ttl {left_ms} ms")
        elif not 0 <= left_ms <= UNCOMMITTED_MS and client.exists(key):
            found.orphans.append(f"data without entry: {key[-16:].hex()} ttl {left_ms} ms")


def _audit_sets(
    client: Valkey, keys: BucketKeys, entries: dict[bytes, Entry], found: Findings
) -> None:
    _, ranks, dirty, *_ = keys.bookkeeping
    should = {
        ranks: {
            id_ for id_, e in entries.items() if e.is_hot and not e.is_dirty and not e.is_pinned
        },
        dirty: {id_ for id_, e in entries.items() if e.is_dirty},
        keys.pins: {id_ for id_, e in entries.items() if e.is_pinned},
        keys.cold_ranks: {id_ for id_, e in entries.items() if e.is_cold and not e.is_pinned},
    }
    for name, ids in should.items():
        has = set(client.zrange(name, 0, -1))
        for id_ in has ^ ids:
            which = "missing in" if id_ in ids else "too much in"
            found.orphans.append(f"{which} {name.decode()}: {id_.hex()}")


def _audit_segments(
    places: Places,
    tenant_id: int,
    entries: dict[bytes, Entry],
    found: Findings,
    said: dict[int, int],
) -> None:
    rows = {row.pk: row for row in Segment.unscoped.filter(tenant_id=tenant_id)}
    live: dict[int, int] = dict.fromkeys((*rows, *said), 0)
    for id_, entry in entries.items():
        if entry.is_cold:
            if entry.segment in rows:
                live[entry.segment] += entry.cold_size_bytes
            else:
                found.orphans.append(f"cold in no segment: {id_.hex()} in {entry.segment}")
    for number, live_bytes in live.items():
        found.drift(f":s of segment {number}", said.get(number, 0), live_bytes)
    for row in rows.values():
        if row.state == Segment.State.LIVE:
            found.drift(f"live_bytes of segment {row.pk}", row.live_bytes, live[row.pk])
        else:
            found.orphans.append(f"segment {row.pk} is still {row.state}")
    copies = list(SegmentCopy.unscoped.filter(tenant_id=tenant_id))
    found.orphans += [
        f"copy {copy.pk} of segment {copy.segment_id} is still {copy.state}"
        for copy in copies
        if copy.state not in SegmentCopy.READABLE
    ]
    for store_id, place in places.items():
        named = {row.object_key for row in rows.values() if row.store_id == store_id}
        named |= {rows[c.segment_id].object_key for c in copies if c.store_id == store_id}
        objects, where = _objects_in(place, tenant_id), f"in {place.name}"
        found.orphans += [f"object without row {where}: {key}" for key in sorted(objects - named)]
        found.orphans += [f"row without object {where}: {key}" for key in sorted(named - objects)]
        uploads = place.s3.list_multipart_uploads(Bucket=place.bucket).get("Uploads", [])
        mine = [u["Key"] for u in uploads if u["Key"].startswith(tenant_prefix(tenant_id))]
        found.orphans += [f"upload that never ended {where}: {key}" for key in mine]
