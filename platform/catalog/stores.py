"""Stores: which bucket each one is, and in which of them a segment can be read.

`Stores` is loaded once for an operation, by one query; threads then ask it without the database.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from base import log_events, sealing
from catalog.models import Segment, SegmentCopy, Store
from neve.errors import Unavailable
from storage import s3

DEFAULT: Final = "default"
ENV_PREFIX: Final = "NEVE_STORE_"  # no other variables of the environment are read
_PURPOSE: Final = "neve.store"


class Stores:
    """All stores, by number; None is the default one. For any thread."""

    def __init__(self) -> None:
        rows = Store.objects.all()
        self.rows: dict[int | None, Store] = {
            None if row.is_default else row.pk: row for row in rows
        }
        if None not in self.rows:
            self.rows[None] = default_row()

    @property
    def are_several(self) -> bool:
        return len(self.rows) > 1

    def bucket(self, store_id: int | None) -> s3.Bucket:
        """Raises Unavailable if its keys cannot be read."""
        return bucket_of(self.rows[store_id])

    def object(self, segment: Segment) -> s3.Object:
        """Where the segment's row says. Raises Unavailable as `bucket`."""
        return self.bucket(segment.store_id).object(segment.object_key)

    def name(self, store_id: int | None) -> str:
        return self.rows[store_id].name

    def is_well(self, store_id: int | None) -> bool:
        """Whether it answered when it was asked last."""
        return self.rows[store_id].failing_since is None

    def order(
        self,
        store_ids: Iterable[int | None],
        near: Sequence[str] = (),
        leaving: Container[int | None] = (),
    ) -> list[int | None]:
        """Stores that answer first, then near ones as given, then by priority; `leaving` ones last:
        addresses there would end with the grace time."""
        places = {name: n for n, name in enumerate(near)}

        def rank(store_id: int | None) -> tuple[bool, bool, int, int, int]:
            row = self.rows[store_id]
            nearness = places.get(row.name, len(places))
            is_away = not self.is_well(store_id)
            return (is_away, store_id in leaving, nearness, row.priority, store_id or 0)

        return sorted(store_ids, key=rank)


def default_row() -> Store:
    """The row of the default store, which a migration makes; an emptied database gets it again."""
    return Store.objects.get_or_create(is_default=True, defaults={"name": DEFAULT})[0]


def name_of(row: Store | None) -> str:
    """None: the default one."""
    return row.name if row else DEFAULT


def reference(row: Store) -> int | None:
    """How segments and copies name this store."""
    return None if row.is_default else row.pk


def bucket_of(row: Store) -> s3.Bucket:
    """Raises Unavailable if its keys cannot be read."""
    if row.is_default:
        return s3.default()
    access_key, secret_key = _keys_of(row)
    return s3.Bucket(
        row.endpoint, row.region, access_key, secret_key, row.bucket, row.storage_class
    )


def _keys_of(row: Store) -> tuple[str, str]:
    if row.credentials_env:
        names = [f"{row.credentials_env}_{each}" for each in ("ACCESS_KEY", "SECRET_KEY")]
        found = [settings.ENV.store_keys.get(name, "") for name in names]
        missing = [name for name, value in zip(names, found, strict=True) if not value]
        if missing:
            raise Unavailable(
                f"store {row.name}: the environment has no {' and no '.join(missing)}: set it for "
                "web and workers"
            )
        return found[0], found[1]
    try:
        return row.access_key, sealing.unseal(bytes(row.sealed_secret), purpose=_PURPOSE).decode()
    except sealing.Unsealable as error:
        raise Unavailable(f"store {row.name}: {error}: set its secret_key again") from error


def sealed(secret_key: str) -> bytes:
    return sealing.seal(secret_key.encode(), purpose=_PURPOSE)


def objects_of(
    segments: Sequence[Segment],
    stores: Stores | None = None,
    *,
    near: Sequence[str] = (),
    only_well: bool = False,
) -> dict[int, s3.Object]:
    """By segment: the object to read, nearest first (`Stores.order`). In the tenant's scope.

    A segment of which no copy's keys can be read is left out; with `only_well`, also one that is
    only in stores that are away. Two queries at most.
    """
    stores = stores or Stores()
    places: dict[int, list[int | None]] = {row.pk: [row.store_id] for row in segments}
    leaving: dict[int, set[int | None]] = defaultdict(set)
    if stores.are_several:
        copies = SegmentCopy.objects.filter(segment__in=places, state__in=SegmentCopy.READABLE)
        for segment_id, store_id, state in copies.values_list("segment_id", "store_id", "state"):
            places[segment_id].append(store_id)
            if state == SegmentCopy.State.LEAVING:
                leaving[segment_id].add(store_id)
    found = {}
    for row in segments:
        among = places[row.pk]
        for place in stores.order(among, near, leaving[row.pk]):
            if only_well and not stores.is_well(place):
                break  # the others are away, too: these come last
            try:
                found[row.pk] = stores.bucket(place).object(row.object_key)
                break
            except Unavailable:
                continue
    return found


def everywhere(segment: Segment, stores: Stores) -> list[s3.Object]:
    """Every object of a segment, also unfinished and leaving ones. In the tenant's scope.

    Raises Unavailable if the keys of a store cannot be read.
    """
    copies = SegmentCopy.objects.filter(segment=segment)
    places = {segment.store_id, *copies.values_list("store_id", flat=True)}
    return [stores.bucket(store_id).object(segment.object_key) for store_id in places]


def named_in(store_id: int | None, keys: Iterable[str]) -> set[str]:
    """Those object keys that a segment or a copy names in this store. Of all tenants."""
    among = list(keys)
    own = Segment.unscoped.filter(store=store_id, object_key__in=among)
    copies = SegmentCopy.unscoped.filter(store=store_id, segment__object_key__in=among)
    return set(own.values_list("object_key", flat=True)) | set(
        copies.values_list("segment__object_key", flat=True)
    )


def away_rows() -> QuerySet[Store]:
    """Stores besides the default that did not answer when they were asked last; the longest away
    first."""
    return Store.objects.filter(is_default=False, failing_since__isnull=False).order_by(
        "failing_since", "pk"
    )


def check() -> int:
    """Asks each store but the default for its bucket, and notes which do not answer.

    Returns how many do not. The default one is asked by `dashboard.probes`.
    """
    others = [row for row in Store.objects.all() if not row.is_default]
    failing = 0
    for row in others:
        error = _trouble_of(row)
        failing += bool(error)
        if error and row.failing_since is None:
            log_events.STORE_FAILED.log(store=row.name, error=error)
            Store.objects.filter(pk=row.pk).update(error=error, failing_since=timezone.now())
        elif not error and row.failing_since is not None:
            Store.objects.filter(pk=row.pk).update(error="", failing_since=None)
    return failing


def _trouble_of(row: Store) -> str:
    """Empty: it answers."""
    try:
        bucket = bucket_of(row)
        bucket.client.head_bucket(**bucket.where)
    except (BotoCoreError, ClientError, Unavailable) as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ""
