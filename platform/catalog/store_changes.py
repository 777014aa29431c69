"""Services that add, change and remove stores, and rules of moves between them. All audited."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from base import live, outbound
from base.preconditions import require_unchanged
from base.problems import Problem
from catalog.models import MoveRule, Segment, SegmentCopy, Store
from catalog.stores import ENV_PREFIX, bucket_of, sealed
from neve.errors import Unavailable
from storage import hot
from storage.s3 import Bucket
from tenants.audit import Actor, record

MOST_STORES: Final = 50
MOST_RULES: Final = 200
PRICES: Final = ("gib_month", "put_1000", "get_1000", "egress_gb")
OF_DEFAULT: Final = frozenset({"priority", "move_bytes_per_s", *PRICES})  # what its row may change
WHERE: Final = frozenset(
    {"endpoint", "bucket", "region", "access_key", "secret_key", "credentials_env"}
)
_SHOWN: Final = (
    *("name", "endpoint", "bucket", "region", "access_key", "credentials_env", "storage_class"),
    *("priority", "move_bytes_per_s", *PRICES),
)
_RULE_SHOWN: Final = (
    *("name", "position", "is_active", "tenant_id", "source_id", "target_id", "is_copy"),
    *("least_age_s", "least_idle_s", "least_heat", "payback_days"),
)
_BLAMED: Final = {  # code of an error of S3 → the member that is wrong
    "NoSuchBucket": "bucket",
    "InvalidBucketName": "bucket",
    "InvalidAccessKeyId": "access_key",
    "SignatureDoesNotMatch": "secret_key",
    "InvalidStorageClass": "storage_class",
    "AuthorizationHeaderMalformed": "region",
    "PermanentRedirect": "region",
}
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}", re.ASCII)
_ENV = re.compile(rf"{ENV_PREFIX}[A-Z0-9_]{{1,40}}", re.ASCII)


def add_store(*, actor: Actor, secret_key: str = "", **fields: Any) -> Store:
    """Writes, reads and deletes an object there first.

    Raises Problem: malformed (with the field that is wrong), conflict, limit-reached.
    """
    row = Store(**fields)
    row.sealed_secret = sealed(secret_key) if secret_key else b""
    if not _NAME.fullmatch(row.name):
        raise Problem(
            "malformed",
            f"name: {row.name!r} is none: a to z, digits and hyphens, a letter first, at most 40, "
            "as of tenants.",
            field="name",
        )
    _require_form(row)
    if Store.objects.count() >= MOST_STORES:
        raise Problem("limit-reached", f"There are {MOST_STORES} stores.", limit="stores")
    _require_works(row)
    try:
        with transaction.atomic():
            row.save()
            record(actor=actor, tenant_id=None, action="store.add", obj=row, after=facts(row))
    except IntegrityError as error:
        raise _taken(row) from error
    live.hint_on_commit(None)
    return row


def change_store(*, store: Store, actor: Actor, **fields: Any) -> Store:
    """Absent fields stay. Its place is proven as in `add_store` if that changes.

    Raises Problem: malformed, conflict (another store is there; or it holds segments and another
    bucket is named), precondition-failed.
    """
    if store.is_default and (wrong := sorted(fields.keys() - OF_DEFAULT)):
        raise Problem(
            "malformed",
            f"{wrong[0]}: that of the default store is in the environment (NEVE_S3_…).",
            field=wrong[0],
        )
    try:
        with transaction.atomic():
            row = Store.objects.select_for_update().get(pk=store.pk)
            require_unchanged(row)
            before, secret_key = facts(row), fields.pop("secret_key", None)
            moves_away = any(
                name in fields and fields[name] != getattr(row, name)
                for name in ("endpoint", "bucket")
            )
            for name, value in fields.items():
                setattr(row, name, value)
            if secret_key is not None:
                row.sealed_secret = sealed(secret_key)
            is_elsewhere = secret_key is not None or bool(fields.keys() & WHERE)
            if not row.is_default and is_elsewhere:
                _require_form(row)
                if moves_away and any(weight_of(row).values()):
                    raise Problem(
                        "conflict",
                        "The store holds segments: its endpoint and bucket stay. Add another one, "
                        "and move them by a rule.",
                        field="bucket",
                    )
                _require_works(row)
            row.updated_at = timezone.now()
            row.save()
            after = facts(row) | ({"secret_key": "changed"} if secret_key is not None else {})
            record(
                actor=actor, tenant_id=None, action="store.change", obj=row, before=before,
                after=after,
            )  # fmt: skip
    except IntegrityError as error:
        raise _taken(store) from error
    return row


@dataclass(frozen=True)
class Removed:
    """`lost_segments`: given up, as no other store has a copy. `rules`: names of those that named
    the store."""

    lost_segments: int
    rules: list[str]


@transaction.atomic
def remove_store(*, store: Store, actor: Actor) -> Removed:
    """Removes a store, with or without what it holds, and the rules that name it; deletes no
    object.

    Segments live on in their copies elsewhere; the others' blocks become misses, and reconcile
    takes them out of the index and the quotas. Raises Problem (conflict) for the default store, and
    Valkey's errors.
    """
    require_unchanged(store)
    if store.is_default:
        raise Problem("conflict", "The default store is that of the environment: it stays.")
    before, rules = facts(store), [row.name for row in rules_naming(store)]
    SegmentCopy.unscoped.filter(store=store).delete()
    lost: dict[int, list[int]] = {}
    for row in Segment.unscoped.filter(store=store).select_for_update():
        copies = SegmentCopy.unscoped.filter(segment=row, state__in=SegmentCopy.READABLE)
        if (copy := copies.first()) is None:
            lost.setdefault(row.tenant_id, []).append(row.pk)
            continue
        Segment.unscoped.filter(pk=row.pk).update(store=copy.store_id, moved_at=timezone.now())
        copy.delete()
    for tenant_id, numbers in lost.items():
        hot.hot_tier(tenant_id).close_segments(numbers)
        Segment.unscoped.filter(pk__in=numbers).delete()
    count = sum(map(len, lost.values()))
    record(
        actor=actor, tenant_id=None, action="store.remove", obj=store,
        before=before | {"lost_segments": count, "rules": rules},
    )  # fmt: skip
    store.delete()
    return Removed(count, rules)


def rules_naming(store: Store) -> QuerySet[MoveRule]:
    """They go with the store."""
    return MoveRule.objects.filter(Q(source=store) | Q(target=store))


def removal_of(store: Store) -> dict[str, int]:
    """What its removal takes, in numbers, for the question before it."""
    elsewhere = SegmentCopy.unscoped.filter(state__in=SegmentCopy.READABLE).exclude(store=store)
    mine = Segment.unscoped.filter(store=store)
    return weight_of(store) | {
        "lost_segments": mine.exclude(pk__in=elsewhere.values("segment_id")).count(),
        "rules": rules_naming(store).count(),
    }


def weight_of(store: Store) -> dict[str, int]:
    """What is in it, also unfinished: numbers of segments and of copies, for a removal."""
    return {
        "segments": Segment.unscoped.filter(store=store).count(),
        "copies": SegmentCopy.unscoped.filter(store=store).count(),
    }


def facts(row: Store) -> dict[str, Any]:
    """For the audit; no secret key."""
    return {name: _plain(getattr(row, name)) for name in _SHOWN}


def _plain(value: Any) -> Any:
    return f"{value.normalize():f}" if isinstance(value, Decimal) else value


def _require_form(row: Store) -> None:
    """Raises Problem (malformed)."""
    for name in ("endpoint", "bucket", "region"):
        if not getattr(row, name):
            raise Problem("malformed", f"{name}: a store needs one.", field=name)
    outbound.check_not_link_local(row.endpoint, field="endpoint")
    if row.credentials_env:
        if not _ENV.fullmatch(row.credentials_env):
            raise Problem(
                "malformed",
                f"credentials_env: needs to begin with {ENV_PREFIX} and to have capital letters, "
                f"digits and underscores, such as {ENV_PREFIX}NVME.",
                field="credentials_env",
            )
    elif not (row.access_key and row.sealed_secret):
        raise Problem(
            "malformed",
            "secret_key: give access_key and secret_key, or credentials_env.",
            field="secret_key",
        )
    env = settings.ENV
    if (row.endpoint.rstrip("/"), row.bucket) == (env.s3_endpoint.rstrip("/"), env.s3_bucket):
        raise Problem("conflict", "bucket: this is the default store.", field="bucket")


def _require_works(row: Store) -> None:
    """Raises Problem (malformed) with the member at fault and the words of S3."""
    try:
        bucket = bucket_of(row)
        probe = bucket.object(f"probe-{uuid4().hex}")
        if not _may_exist(bucket):  # first: a write makes the bucket on some S3
            raise Problem(
                "malformed",
                f"bucket: {bucket.endpoint} has no bucket {bucket.name!r}: create it first.",
                field="bucket",
            )
        bucket.client.put_object(**probe.where, **bucket.written_as, Body=b"neve")
        found = probe.get("bytes=0-")["Body"].read()
        probe.delete()
    except Unavailable as error:
        raise Problem("malformed", f"credentials_env: {error}", field="credentials_env") from error
    except (BotoCoreError, ClientError, ValueError) as error:
        field = _field_of(error, row)
        raise Problem(
            "malformed",
            f"{field}: the bucket did not take, give and delete an object: {error}",
            field=field,
        ) from error
    if found != b"neve":
        raise Problem("malformed", "endpoint: it gave back other bytes.", field="endpoint")


def _may_exist(bucket: Bucket) -> bool:
    try:
        return bucket.exists()
    except ClientError:  # the write that follows says why, or these keys may not ask for the bucket
        return True


def _field_of(error: Exception, row: Store) -> str:
    """The member that S3 blames; endpoint if it blames none."""
    if isinstance(error, ParamValidationError):
        return "bucket"
    code = error.response["Error"].get("Code", "") if isinstance(error, ClientError) else ""
    field = _BLAMED.get(code, "endpoint")
    is_key = field in ("access_key", "secret_key")
    return "credentials_env" if is_key and row.credentials_env else field


def _taken(row: Store) -> Problem:
    return Problem("conflict", f"name: a store {row.name!r}, or one of this bucket, exists.")


# ---- rules


def add_rule(*, actor: Actor, **fields: Any) -> MoveRule:
    """Raises Problem: malformed, conflict (the name is taken), limit-reached."""
    row = MoveRule(**fields)
    _require_sense(row)
    if MoveRule.objects.count() >= MOST_RULES:
        raise Problem("limit-reached", f"There are {MOST_RULES} rules.", limit="move-rules")
    try:
        with transaction.atomic():
            row.save()
            record(
                actor=actor, tenant_id=None, action="move_rule.add", obj=row,
                after=rule_facts(row),
            )  # fmt: skip
    except IntegrityError as error:
        raise _name_taken(row) from error
    return row


def change_rule(*, rule: MoveRule, actor: Actor, **fields: Any) -> MoveRule:
    """Absent fields stay. Raises Problem: malformed, conflict, precondition-failed."""
    try:
        with transaction.atomic():
            row = MoveRule.objects.select_for_update().get(pk=rule.pk)
            require_unchanged(row)
            before = rule_facts(row)
            for name, value in fields.items():
                setattr(row, name, value)
            _require_sense(row)
            row.updated_at = timezone.now()
            row.save()
            record(
                actor=actor, tenant_id=None, action="move_rule.change", obj=row,
                before=before, after=rule_facts(row),
            )  # fmt: skip
    except IntegrityError as error:
        raise _name_taken(rule) from error
    return row


@transaction.atomic
def remove_rule(*, rule: MoveRule, actor: Actor) -> None:
    """Copies that only it kept leave with the next pass."""
    require_unchanged(rule)
    record(
        actor=actor, tenant_id=None, action="move_rule.remove", obj=rule,
        before=rule_facts(rule),
    )  # fmt: skip
    rule.delete()


def rule_facts(row: MoveRule) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _RULE_SHOWN}


def warnings_of(row: MoveRule) -> list[str]:
    """What is allowed and seldom meant, in words."""
    limits = (row.least_age_s, row.least_idle_s, row.least_heat, row.payback_days)
    if any(limit is not None for limit in limits):
        return []
    what, where = ("copies", "") if row.is_copy else ("moves", " and keeps it there")
    whose = "other stores" if row.source is None else row.source.name
    return [f"It has no condition: it {what} every segment of {whose} to {row.target.name}{where}."]


def _require_sense(row: MoveRule) -> None:
    if row.source_id == row.target_id:
        raise Problem("malformed", "target: needs to be another store than source.", field="target")
    if row.is_copy and row.payback_days is not None:
        raise Problem(
            "malformed", "payback_days: a copy saves nothing; give none.", field="payback_days"
        )


def _name_taken(row: MoveRule) -> Problem:
    return Problem("conflict", f"name: there is a rule {row.name!r} already.", field="name")
