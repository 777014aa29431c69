"""Dry run: which blocks a change of policy or rules would remove. Only reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
from django.conf import settings
from django.utils import timezone

from catalog.models import ID_BYTES, Context
from contexts.parts import parts_by_space
from contexts.stored import Standing, StandingTerms
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.scan import IndexEntry, last_used_s
from retention.models import RetentionPolicy, RetentionRule
from retention.rulebook import Rulebook, rulebook_of
from retention.services import put
from retention.terms import end_of
from storage import hot
from storage.hot import scan_tenant
from tenants.models import Tenant
from tenants.scope import tenant_scope

MOST_BLOCKS = 200_000  # limit of a request, some seconds; the command has none
MOST_NAMED = 5
LATELY = timedelta(days=1)


@dataclass(frozen=True)
class LosingContext:
    """A context that would lose `lost_blocks` of its `blocks`."""

    uuid: UUID
    name: str
    last_used_at: datetime | None
    lost_blocks: int
    blocks: int


@dataclass
class DryRun:
    """Blocks that the change would remove at once. Lower bounds unless `is_complete`.

    Removed blocks leave both tiers; cooled blocks (idle for too long) leave only the hot tier.
    `contexts`: number of contexts that lose blocks; `contexts_used_24h`: of those that a request
    used within a day; `named`: the last used of them, at most MOST_NAMED. Pinned blocks do not
    count: they stay until their pins end.
    """

    looked_at: int = 0
    is_complete: bool = True
    removed_blocks: int = 0
    removed_hot_bytes: int = 0
    removed_cold_bytes: int = 0
    cooled_blocks: int = 0
    cooled_bytes: int = 0
    contexts: int = 0
    contexts_used_24h: int = 0
    named: list[LosingContext] = field(default_factory=list)

    @property
    def touches_nothing(self) -> bool:
        return not self.removed_blocks and not self.cooled_blocks


def proposed_rulebook(
    tenant: Tenant,
    *,
    policy: dict[str, Any] | None = None,
    rules: Sequence[dict[str, Any]] | None = None,
) -> Rulebook:
    """The tenant's rulebook with the fields in `policy` changed and all rules replaced by `rules`.

    Raises ValidationError as saving them would.
    """
    book = rulebook_of(tenant.pk)
    with tenant_scope(tenant.pk):
        row = RetentionPolicy.objects.get()
        put(row, policy or {})
        row.full_clean(validate_unique=False, validate_constraints=True)
        proposed = [RetentionRule(tenant=tenant, **fields) for fields in rules or ()]
        for rule in proposed:
            rule.full_clean(validate_unique=False, validate_constraints=True)
    kept = book.rules if rules is None else tuple(rule.rule() for rule in proposed)
    return Rulebook(row.terms(), kept)


def dry_run(tenant_id: int, book: Rulebook, *, most_blocks: int | None = None) -> DryRun:
    """Walks the tenant's index once. Raises valkey's errors."""
    report, now_s = DryRun(), timezone.now().timestamp()
    standing = StandingTerms(tenant_id, book)
    removed: list[bytes] = []
    for page in scan_tenant(tenant_id):
        if most_blocks is not None and report.looked_at >= most_blocks:
            report.is_complete = False
            break
        entries = page.entries
        owners = standing.of([e.id for e in entries], [e.space_id for e in entries])
        ends, cools = effect_on(entries, owners, _last_used(tenant_id, entries), now_s)
        report.looked_at += len(entries)
        report.removed_blocks += len(ends)
        report.removed_hot_bytes += sum(e.size_bytes for e in ends if e.is_hot)
        report.removed_cold_bytes += sum(e.cold_size_bytes for e in ends if e.is_cold)
        report.cooled_blocks += len(cools)
        report.cooled_bytes += sum(e.size_bytes for e in cools)
        removed += (e.id for e in ends)
    losing = _contexts_with(tenant_id, removed)
    since = timezone.now() - LATELY
    report.contexts = len(losing)
    report.contexts_used_24h = sum(
        1 for one in losing if one.last_used_at and one.last_used_at > since
    )
    report.named = sorted(losing, key=_last_use, reverse=True)[:MOST_NAMED]
    return report


def effect_on(
    entries: Sequence[IndexEntry],
    standings: Sequence[Standing],
    last_used: Sequence[int | None],
    now_s: float,
) -> tuple[list[IndexEntry], list[IndexEntry]]:
    """(removed blocks, blocks that leave only the hot tier) of a page of the index. Pure.

    `last_used`: seconds since 1970; None for a block that cannot be evicted now. Expired blocks are
    in neither list: they go without the change, too.
    """
    removed, cooled = [], []
    for entry, standing, used_s in zip(entries, standings, last_used, strict=True):
        if entry.is_expired(now_s) or entry.pinned_s > now_s:
            continue
        terms = standing.terms
        is_idle = used_s is not None and terms.idle_s and used_s + terms.idle_s <= now_s
        if 0 < end_of(terms, entry.stored_s) <= now_s or (is_idle and not entry.is_cold):
            removed.append(entry)
        elif is_idle:
            cooled.append(entry)
    return removed, cooled


def _last_used(tenant_id: int, entries: Sequence[IndexEntry]) -> list[int | None]:
    """Last use, in seconds since 1970, of blocks of one bucket (a page has one bucket)."""
    if not entries:
        return []
    keys = BucketKeys(tenant_id, bucket_of(entries[0].id, settings.ENV.hot_buckets))
    return last_used_s(hot.execute, keys, [entry.id for entry in entries])


def _last_use(context: LosingContext) -> float:
    return context.last_used_at.timestamp() if context.last_used_at else 0.0


def _contexts_with(tenant_id: int, ids: Sequence[bytes]) -> list[LosingContext]:
    """The contexts that have any of these blocks."""
    if not ids:
        return []
    kind = np.dtype(f"S{ID_BYTES}")
    wanted = np.sort(np.frombuffer(b"".join(ids), kind))
    parts = parts_by_space(tenant_id)
    with tenant_scope(tenant_id):
        rows = Context.objects.order_by().values_list(
            "space_id", "chain", "uuid", "name", "last_used_at"
        )
        losing = []
        for space_id, chain, uuid, name, used_at in rows.iterator(chunk_size=100):
            own = np.frombuffer(parts[space_id].of_chain(bytes(chain)), kind)
            places = np.minimum(np.searchsorted(wanted, own), len(wanted) - 1)
            if lost := int((wanted[places] == own).sum()):
                losing.append(LosingContext(uuid, name, used_at, lost, len(own)))
    return losing
