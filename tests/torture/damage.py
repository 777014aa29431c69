"""Damage on purpose: bits flipped in Valkey, S3 and files; segments cut, replaced and taken away.

Writes straight to the servers. Each function tells the model which blocks it damaged, and does
nothing while there are none.
"""

import os
import random
from pathlib import Path

from botocore.exceptions import ClientError
from valkey import Valkey

from catalog.models import Segment, SegmentCopy
from neve.errors import Corrupt
from neve.formats.keys import BucketKeys, tenant_prefix
from neve.formats.segment import SegmentFooter, read_footer
from torture.audit import Place, Places, index_of
from torture.model import Model


def flip_hot(client: Valkey, tenant_id: int, model: Model, rng: random.Random) -> bool:
    """One bit of one block in Valkey, anywhere in header or payload."""
    key, id_ = _any_hot(client, tenant_id, rng)
    value = client.get(key) if key else None
    if not value:
        return False
    at = rng.randrange(len(value))
    model.damaged_hot.add(id_)
    client.setrange(key, at, bytes([value[at] ^ 1 << rng.randrange(8)]))
    return True


def lose_key(client: Valkey, tenant_id: int, model: Model, rng: random.Random) -> bool:
    """Deletes the bytes of a hot block; its index entry stays."""
    key, id_ = _any_hot(client, tenant_id, rng)
    if not key:
        return False
    model.damaged_hot.add(id_)
    client.delete(key)
    return True


def stray_key(client: Valkey, tenant_id: int, rng: random.Random) -> bool:
    """Writes a block key that no entry owns and that never expires."""
    client.set(BucketKeys(tenant_id, 0).block(1, rng.randbytes(16)), b"stray")
    return True


def miscount(client: Valkey, tenant_id: int, model: Model, rng: random.Random) -> bool:
    """Makes one usage counter too high or too low."""
    name = rng.choice(("hot_bytes", "cold_bytes", "dirty_bytes", "hot_blocks", "cold_blocks"))
    by = rng.randint(-5000, 50_000)
    client.hincrby(BucketKeys(tenant_id, 0).bookkeeping[3], name, by)
    if name == "cold_bytes":
        model.uncounted_bytes += max(0, -by)
    return True


def flip_cold(places: Places, tenant_id: int, model: Model, rng: random.Random) -> bool:
    """One bit of one block in S3."""
    row, raw, footer, place = _any_segment(places, tenant_id, rng)
    if row is None:
        return False
    at = rng.randrange(footer.rows[0].offset, footer.rows[-1].end)
    model.damaged_cold |= {r.id for r in footer.rows if r.offset <= at < r.end}
    return _put(place, row, raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :])


def flip_footer(places: Places, tenant_id: int, model: Model, rng: random.Random) -> bool:
    """One bit of a footer: reads by the index go on, a rebuild cannot know these blocks."""
    row, raw, footer, place = _any_segment(places, tenant_id, rng)
    if row is None:
        return False
    at = rng.randrange(footer.rows[-1].end, len(raw))
    model.footers_damaged |= {r.id for r in footer.rows}
    return _put(place, row, raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :])


def cut_segment(places: Places, tenant_id: int, model: Model, rng: random.Random) -> bool:
    row, raw, footer, place = _any_segment(places, tenant_id, rng)
    if row is None:
        return False
    size = rng.randrange(len(raw))
    model.damaged_cold |= {r.id for r in footer.rows if r.end > size}
    model.footers_damaged |= {r.id for r in footer.rows}
    return _put(place, row, raw[:size])


def foreign_segment(
    places: Places, tenant_id: int, model: Model, rng: random.Random, other_tenant_id: int
) -> bool:
    """Puts another segment, perhaps of another tenant, in a segment's place."""
    row, _, footer, place = _any_segment(places, tenant_id, rng)
    other, foreign, _, _ = _any_segment(places, other_tenant_id, rng)
    if row is None or other is None or other.pk == row.pk:
        return False
    model.damaged_cold |= {r.id for r in footer.rows}
    model.footers_damaged |= {r.id for r in footer.rows}
    return _put(place, row, foreign)


def delete_segment(places: Places, tenant_id: int, model: Model, rng: random.Random) -> bool:
    row, _, footer, place = _any_segment(places, tenant_id, rng)
    if row is None:
        return False
    model.damaged_cold |= {r.id for r in footer.rows}
    model.footers_damaged |= {r.id for r in footer.rows}
    model.taken_away |= {r.id for r in footer.rows}
    place.s3.delete_object(Bucket=place.bucket, Key=row.object_key)
    return True


def stray_object(places: Places, tenant_id: int, rng: random.Random) -> bool:
    """Puts an object under the tenant's prefix that no row names."""
    key = f"{tenant_prefix(tenant_id)}{rng.randbytes(8).hex()}/stray.seg"
    body = rng.randbytes(rng.randrange(1, 5000))
    place = rng.choice(list(places.values()))
    place.s3.put_object(Bucket=place.bucket, Key=key, Body=body)
    return True


def flip_local(files: list[Path], rng: random.Random) -> None:
    """One bit of one block's file in the nodes' local tier, anywhere in header or payload."""
    with rng.choice(files).open("r+b") as file:
        at = rng.randrange(os.fstat(file.fileno()).st_size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def cut_local(files: list[Path], rng: random.Random) -> None:
    """The host crashed before all bytes were on its disk."""
    path = rng.choice(files)
    os.truncate(path, rng.randrange(path.stat().st_size))


def foreign_local(files: list[Path], rng: random.Random) -> None:
    """A whole block under another one's name, of another tenant too."""
    rng.choice(files).write_bytes(rng.choice(files).read_bytes())


def _any_hot(client: Valkey, tenant_id: int, rng: random.Random) -> tuple[bytes, bytes]:
    hot = sorted((id_, e.space_id) for id_, e in index_of(client, tenant_id).items() if e.is_hot)
    if not hot:
        return b"", b""
    id_, space_id = rng.choice(hot)
    return BucketKeys(tenant_id, 0).block(space_id, id_), id_


def _any_segment(
    places: Places, tenant_id: int, rng: random.Random
) -> tuple[Segment | None, bytes, SegmentFooter, Place]:
    """A live segment, and one of its places where it is undamaged."""
    rows = list(Segment.unscoped.filter(tenant_id=tenant_id, state="live").order_by("pk"))
    rng.shuffle(rows)
    for row in rows:
        copies = SegmentCopy.unscoped.filter(segment=row, state__in=SegmentCopy.READABLE)
        among = [row.store_id, *copies.order_by("pk").values_list("store_id", flat=True)]
        place = places[rng.choice(among)]
        try:
            raw = place.s3.get_object(Bucket=place.bucket, Key=row.object_key)["Body"].read()
            footer = read_footer(lambda at, n, raw=raw: raw[at : at + n], len(raw))
        except (ClientError, Corrupt):
            continue
        if footer.header.uuid == row.uuid and footer.rows:
            return row, raw, footer, place
    return None, b"", None, None  # type: ignore[return-value]


def _put(place: Place, row: Segment, body: bytes) -> bool:
    place.s3.put_object(Bucket=place.bucket, Key=row.object_key, Body=body)
    return True
