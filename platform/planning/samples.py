"""Samples of each tenant's traffic: taken from heartbeats, kept as files in S3, read for estimates.

Path: a heartbeat's batch is checked and put on valkey-bus; the kind of work `store_samples` writes
what waits into a file, every FILE_S or sooner if much waits; files are deleted after
NEVE_KEEP_SAMPLES_DAYS, when the tenant switches samples off, and with the tenant. A lost bus loses
what waited: minutes. No row of the database holds a sample.

A node is hostile: a wrong batch is dropped and counted, and the heartbeat goes on; a tenant's nodes
put at most MINUTE_BYTES a minute and WAITING_BATCHES at a time on the bus. Nothing of another
tenant is touched.

File: `v1/t<tenant>/samples/<YYYY-MM-DD>/<HH>/<first ms>-<hash>`, zlib of
    "NVSP"   u8 version = 1   then entries: u64 ms of arrival   u32 space   u32 bytes   batch
with integers little-endian and batches as in `neve.formats.samples`.

Must not be here: estimates (`neve.planner.simulate.sampled`).
"""

import struct
import time
import zlib
from base64 import b64decode
from binascii import Error as Base64Error
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from redis.exceptions import RedisError

from base import log_events
from base.counting import SAMPLES_DROPPED, bus
from catalog.models import NodeSession, Space
from catalog.targets import Opener, Target
from catalog.usage import known
from neve.errors import Corrupt, Misuse
from neve.formats.block import HEADER_BYTES
from neve.formats.keys import samples_prefix
from neve.formats.samples import (
    KEY_BYTES,
    LOWEST_RATE_LOG,
    MOST_BATCH_BYTES,
    Batch,
    decode,
)
from neve.node.stats import COUNTERS
from neve.planner.simulate.samples import Samples, gathered
from storage import s3
from tenants.models import Tenant
from tenants.scope import tenant_scope

FILE_S: Final = 300.0
FILE_BYTES: Final = 256 << 10  # waiting: written at the next tick
MINUTE_BYTES: Final = 512 << 10
WAITING_BATCHES: Final = 2_000
PAUSE_S: Final = 5.0
MOST_OF_BUS: Final = 0.5  # of its memory; above, samples are dropped
WAITING_BYTES: Final = 8 << 20  # while no worker or S3 takes them: the bus has 256 MB for all
WAITING_S: Final = 6 * 3600  # on the bus without a worker
BEAT_S: Final = 600  # a node sends a heartbeat again within seconds
LOCK_S: Final = 600
LEAST_SPAN_S: Final = 150.0
TARGET_ACCESSES: Final = 100_000  # sampled in an hour: about 1.3 MB
SESSIONS_READ: Final = 200
MOST_FILES: Final = 10_000  # listed for one answer
MOST_READ_BYTES: Final = 64 << 20  # of files, unpacked, for one estimate or export
MOST_READ_ACCESSES: Final = 600_000  # held for it: twice what a simulation plays
MOST_FILE_BYTES: Final = 64 << 20  # unpacked
_WITH_FILES: Final = "neve:samples:tenants"  # SET of ids, made anew by each file
_HEAD: Final = b"NVSP\x01"
_ENTRY: Final = struct.Struct("<QII")
_DAY: Final = "%Y-%m-%d"


# ---- what nodes are told


def terms_of(tenant: Tenant) -> dict[str, Any] | None:
    """The answer's `sample`: rate and key; None: do not sample."""
    if not tenant.samples_enabled:
        return None
    return {"rate_log": tenant.sample_rate_log, "key": _key_of(tenant.pk).hex()}


def _key_of(tenant_id: int) -> bytes:
    """The same in all handshakes, so that all nodes of a tenant sample the same ids."""
    secret = settings.SECRET_KEY.encode()
    salt = tenant_id.to_bytes(8, "little")
    return blake2b(
        b"neve.samples", key=secret[:64], salt=salt, digest_size=KEY_BYTES, person=b"samples"
    ).digest()


# ---- at the door


def accept(*, tenant: Tenant, session: NodeSession, seq: int, samples: object) -> bool:
    """Takes the batch of the session's heartbeat `seq`: text in Base64. Returns False if it was
    dropped, which is counted.

    Raises nothing: a heartbeat never fails for its samples.
    """
    if not tenant.samples_enabled:
        return _dropped("off")
    if not isinstance(samples, str) or len(samples) > MOST_BATCH_BYTES * 4 // 3 + 4:
        return _dropped("malformed")
    try:
        data = b64decode(samples, validate=True)
        decode(data)
    except (Corrupt, Base64Error, ValueError):
        return _dropped("malformed")
    entry = _ENTRY.pack(time.time_ns() // 1_000_000, session.space_id % 2**32, len(data)) + data
    transaction.on_commit(lambda: _put(tenant.pk, str(session.pk), seq, entry))
    return True


def _put(tenant_id: int, session: str, seq: int, entry: bytes) -> None:
    now_s = time.monotonic()
    if now_s < _away.until_s:
        _dropped("bus")
        return
    minute = f"neve:samples:{tenant_id}:{int(time.time() // 60)}"
    try:
        if not _has_room(now_s):
            _dropped("bus")
            return
        first = bus().pipeline(transaction=False)
        # One key a session, however many heartbeats it sends.
        first.set(f"neve:samples:beat:{session}", seq, get=True, ex=BEAT_S)
        first.incrby(minute, len(entry))
        first.incrby(_waiting_bytes(tenant_id), len(entry))
        first.expire(minute, 120)
        first.expire(_waiting_bytes(tenant_id), WAITING_S)
        last_seq, minute_bytes, waiting_bytes, *_ = first.execute()
        if last_seq is not None and int(last_seq) == seq:
            return  # sent again, since the answer was lost
        if minute_bytes > MINUTE_BYTES or waiting_bytes > WAITING_BYTES:
            _dropped("too_many")
            return
        pipe = bus().pipeline(transaction=False)
        pipe.rpush(_waiting(tenant_id), entry)
        pipe.ltrim(_waiting(tenant_id), -WAITING_BATCHES, -1)
        pipe.expire(_waiting(tenant_id), WAITING_S)
        pipe.execute()
    except RedisError:
        _away.until_s = now_s + PAUSE_S  # heartbeats do not wait for a bus that is away
        _dropped("bus")


def _has_room(now_s: float) -> bool:
    """Looks every PAUSE_S. All tenants together leave the bus room for background work."""
    if now_s >= _away.look_s:
        _away.look_s = now_s + PAUSE_S
        memory: Any = bus().info("memory")
        most = memory["maxmemory"] * MOST_OF_BUS
        if most and memory["used_memory"] > most:
            _away.until_s = now_s + PAUSE_S
            return False
    return True


@dataclass
class _Away:
    """The bus is away or full until `until_s`; its memory is looked at again at `look_s`."""

    until_s: float = 0.0
    look_s: float = 0.0


_away = _Away()


def _dropped(reason: str) -> bool:
    SAMPLES_DROPPED.add(reason)
    return False


def _waiting(tenant_id: int) -> str:
    return f"neve:samples:{tenant_id}:waiting"


def _waiting_bytes(tenant_id: int) -> str:
    return f"neve:samples:{tenant_id}:waiting-bytes"


def _taken(tenant_id: int) -> str:
    return f"neve:samples:{tenant_id}:taken"


# ---- into files


def every_tenant() -> list[Target]:
    """Inactive ones, too: their files grow old."""
    return [(id_, {}) for id_ in Tenant.objects.values_list("pk", flat=True)]


def store(job: Opener, tenant_id: int) -> None:
    """Write waiting samples into a file, choose the rate, delete old files. No Job row."""
    lock = f"neve:samples:{tenant_id}:lock"
    if not bus().set(lock, "1", nx=True, ex=LOCK_S):
        return
    try:
        _store(tenant_id)
    finally:
        bus().delete(lock)


def _store(tenant_id: int) -> None:
    tenant = Tenant.objects.filter(pk=tenant_id).first()
    if tenant is None or not tenant.samples_enabled:
        bus().delete(_waiting(tenant_id), _waiting_bytes(tenant_id), _taken(tenant_id))
        if bus().set(f"neve:samples:{tenant_id}:emptied", "1", nx=True, ex=3600):
            delete_files(tenant_id)
        return
    bus().delete(f"neve:samples:{tenant_id}:emptied")
    if bus().exists(_taken(tenant_id)) or _take(tenant_id):
        entries: list[bytes] = bus().lrange(_taken(tenant_id), 0, -1)  # type: ignore[assignment]
        write_file(tenant_id, entries)
        # A worker killed before this writes the same file again, under the same name.
        bus().delete(_taken(tenant_id))
        _choose_rate(tenant, entries)
    if bus().set(f"neve:samples:{tenant_id}:pruned", "1", nx=True, ex=3600):
        kept = timedelta(days=keep_days())
        delete_files(tenant_id, before=datetime.now(UTC) - kept)


def _take(tenant_id: int) -> bool:
    """Sets apart what waits, if it is old or much enough for a file."""
    first: Any = bus().lindex(_waiting(tenant_id), 0)
    if first is None:
        return False
    at_ms = _ENTRY.unpack_from(first)[0]
    is_due = time.time() - at_ms / 1000 >= FILE_S
    count: Any = bus().llen(_waiting(tenant_id))
    if not (is_due or count * len(first) >= FILE_BYTES or count >= WAITING_BATCHES // 2):
        return False
    bus().delete(_waiting_bytes(tenant_id))
    return bool(bus().renamenx(_waiting(tenant_id), _taken(tenant_id)))


def write_file(tenant_id: int, entries: Sequence[bytes]) -> str:
    """Returns the object's key, which depends on the entries alone."""
    body = _HEAD + b"".join(entries)
    first_ms = _ENTRY.unpack_from(entries[0])[0]
    at = datetime.fromtimestamp(first_ms / 1000, UTC)
    name = f"{first_ms}-{blake2b(body, digest_size=8).hexdigest()}"
    key = f"{samples_prefix(tenant_id)}{at:%Y-%m-%d/%H}/{name}"
    s3.client().put_object(Bucket=settings.ENV.s3_bucket, Key=key, Body=zlib.compress(body))
    bus().sadd(_WITH_FILES, tenant_id)
    return key


def _choose_rate(tenant: Tenant, entries: Sequence[bytes]) -> None:
    """The highest rate that keeps about TARGET_ACCESSES an hour; a higher one than now only if half
    of that would be enough, so that the rate does not swing."""
    times = [_ENTRY.unpack_from(entry)[0] / 1000 for entry in entries]
    span_s = max(LEAST_SPAN_S, times[-1] - times[0])
    found = (decode(data) for _, _, data in _entries(b"".join(entries)))
    asked = sum(batch.totals.asked_blocks for batch in found) * 3600 / span_s
    rate_log = rate_for(asked, now=tenant.sample_rate_log)
    if rate_log != tenant.sample_rate_log:
        Tenant.objects.filter(pk=tenant.pk).update(sample_rate_log=rate_log)


def rate_for(asked_per_hour: float, *, now: int) -> int:
    """The rate's n of 2⁻ⁿ."""
    wanted = next(
        (n for n in range(LOWEST_RATE_LOG) if asked_per_hour / 2**n <= TARGET_ACCESSES),
        LOWEST_RATE_LOG,
    )
    if wanted >= now:
        return wanted
    calm = next(
        (n for n in range(LOWEST_RATE_LOG) if asked_per_hour / 2**n <= TARGET_ACCESSES / 2),
        LOWEST_RATE_LOG,
    )
    return min(calm, now)


# ---- what is there


@dataclass(frozen=True)
class Stored:
    """Files of a tenant. `first`, `last`: when their first batches came."""

    files: int
    size_bytes: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True)
class _File:
    key: str
    size_bytes: int
    at: datetime


def stored(tenant_id: int) -> Stored:
    """Raises S3's errors. Counts at most MOST_FILES files."""
    files = list(_files(tenant_id))
    if not files:
        return Stored(0, 0, None, None)
    return Stored(len(files), sum(f.size_bytes for f in files), files[0].at, files[-1].at)


def delete_files(tenant_id: int, *, before: datetime | None = None) -> int:
    """Deletes all files, or those that began before a moment. Returns how many."""
    doomed = []
    for file in _files(tenant_id):
        if before is not None and file.at >= before:
            break
        doomed.append(file.key)
    for key in doomed:
        s3.client().delete_object(Bucket=settings.ENV.s3_bucket, Key=key)
    if before is None:
        bus().srem(_WITH_FILES, tenant_id)
    return len(doomed)


def is_enabled(tenant_id: int) -> bool:
    """Whether nodes of the tenant are asked for samples."""
    return Tenant.objects.filter(pk=tenant_id, samples_enabled=True).exists()


def tenants_with_samples() -> list[int]:
    """Active tenants of which files were written lately. For a tick: no request to S3."""
    try:
        found: Any = bus().smembers(_WITH_FILES)
    except RedisError:
        return []
    ids = {int(each) for each in found}
    return list(Tenant.objects.filter(is_active=True, pk__in=ids).values_list("pk", flat=True))


def read(tenant_id: int, start: datetime, end: datetime, *, space_id: int = 0) -> Samples:
    """The samples of a window, of one space or (0) of all. Without any: no requests.

    Times are Unix times; a sampled request's `space` is a name. Blocks' bytes are payload. Reads at
    most MOST_READ_BYTES, the newest first: the earliest request says from when on. Of more than
    MOST_READ_ACCESSES, a lower rate. A damaged file is left out. Raises S3's errors.
    """
    begin = start - timedelta(seconds=WAITING_S)  # of the first batch in a file
    files = [file for file in _files(tenant_id, since=begin) if file.at <= end]
    window_s = start.timestamp(), end.timestamp()
    parts = _parts(_spaces(tenant_id), reversed(files), window_s, space_id)
    return gathered(parts, most_accesses=MOST_READ_ACCESSES)


def keep_days() -> int:
    days: int = settings.ENV.keep_samples_days
    return days


@dataclass(frozen=True)
class _Space:
    """`block_bytes`: payload of a sampled block, over all ranks; 0: unknown."""

    name: str
    block_bytes: int = 0


def _spaces(tenant_id: int) -> dict[int, _Space]:
    """By number. Blocks are as large as those that the latest sessions stored. Two queries."""
    stored_bytes: Counter[int] = Counter()
    stored_blocks: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    asked_tokens: Counter[int] = Counter()
    with tenant_scope(tenant_id):
        latest = NodeSession.objects.order_by("-opened_at").values_list("space_id", "totals")
        for space_id, totals in latest[:SESSIONS_READ]:
            counts = known(totals, COUNTERS)
            stored_bytes[space_id] += counts.get("hot_write_bytes", 0)
            stored_blocks[space_id] += counts.get("put_blocks", 0)
            stored_blocks[space_id] += counts.get("promoted_blocks", 0)
            asked[space_id] += counts.get("requested_blocks", 0)
            asked_tokens[space_id] += counts.get("requested_tokens", 0)
        found = {}
        for space in Space.objects.only("pk", "name", "identity", "chunk_tokens"):
            bytes_ = stored_bytes[space.pk] / max(1, stored_blocks[space.pk])
            chunks = max(1.0, asked_tokens[space.pk] / max(1, space.chunk_tokens))
            columns = max(1, round(asked[space.pk] / chunks))
            size_bytes = max(0, round(bytes_ * columns * space.ranks) - HEADER_BYTES)
            found[space.pk] = _Space(space.name, size_bytes)
    return found


def _parts(
    spaces: Mapping[int, _Space],
    files: Iterable[_File],
    window_s: tuple[float, float],
    wanted_id: int,
) -> Iterator[Samples]:
    """The batches of a window, one at a time: unpacked they are up to a hundred times as large, and
    as objects twenty times more."""
    read_bytes = 0
    for file in files:
        data = s3.client().get_object(Bucket=settings.ENV.s3_bucket, Key=file.key)["Body"].read()
        try:
            body = _unpacked(data)
            read_bytes += len(body)
            if read_bytes > MOST_READ_BYTES:
                return
            for at_ms, space_id, batch_bytes in _entries(body):
                at_s = at_ms / 1000
                if window_s[0] <= at_s <= window_s[1] and wanted_id in (0, space_id):
                    space = spaces.get(space_id, _Space(str(space_id)))
                    yield _placed(decode(batch_bytes), at_s, space)
        except (Corrupt, Misuse, zlib.error) as error:
            log_events.SAMPLES_DAMAGED.log(object=file.key, error=str(error))


def _placed(batch: Batch, at_s: float, space: _Space) -> Samples:
    """With Unix times, and the space's name and bytes."""
    block_bytes = batch.block_bytes or space.block_bytes
    requests = [
        replace(each, at_s=at_s + each.at_s, space=space.name, block_bytes=block_bytes)
        for each in batch.requests
    ]
    return Samples(batch.rate_log, requests, batch.totals)


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    body = unpacker.decompress(data, MOST_FILE_BYTES)
    if unpacker.unconsumed_tail or not body.startswith(_HEAD):
        raise Corrupt("no file of samples")
    return body[len(_HEAD) :]


def _entries(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at < len(body):
        if at + _ENTRY.size > len(body):
            raise Corrupt("it ends within an entry")
        at_ms, space_id, length = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size
        if at + length > len(body):
            raise Corrupt("it ends within a batch")
        yield at_ms, space_id, body[at : at + length]
        at += length


def _files(tenant_id: int, *, since: datetime | None = None) -> Iterator[_File]:
    """In order of time: the keys sort so."""
    prefix = samples_prefix(tenant_id)
    begin = prefix if since is None else f"{prefix}{since.astimezone(UTC):%Y-%m-%d/%H}"
    pages = s3.client().get_paginator("list_objects_v2")
    count = 0
    for page in pages.paginate(Bucket=settings.ENV.s3_bucket, Prefix=prefix, StartAfter=begin):
        for item in page.get("Contents", ()):
            name = item["Key"].rpartition("/")[2].partition("-")[0]
            if not name.isdecimal():
                continue
            yield _File(item["Key"], item["Size"], datetime.fromtimestamp(int(name) / 1000, UTC))
            count += 1
            if count == MOST_FILES:
                return
