"""Recent requests: taken from heartbeats, kept for a day, found by what users have in hand.

A node is hostile: a batch with one wrong record is dropped and counted, and the heartbeat goes on.
A session has SLOTS rows at most, a tenant MOST_ROWS; older ones leave with the kind of work
`housekeeping`. A node can only write the ring of its own session.

What users have: vLLM answers `id` (`cmpl-…`, `chatcmpl-…`), which holds the header `X-Request-Id`
if the caller sent one. Its engine appends the prompt's number and eight random characters.
"""

import re
import time
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import Count, F, Max, Q, QuerySet
from django.utils import timezone

from base.counting import REQUESTS_DROPPED
from catalog.models import KeptRequest, NodeSession, Space
from neve.errors import Misuse
from neve.node.requests import MOST_KIN, MOST_SENT, RequestRecord
from tenants.models import Tenant
from tenants.scope import tenant_scope

ONE_IN: Final = 100
KEPT: Final = timedelta(days=1)
SLOTS: Final = 512
MOST_ROWS: Final = 5_000
_PREFIX: Final = re.compile(r"^(?:chatcmpl|cmpl|resp|embd|score|generate-tokens)[-_]", re.ASCII)
_OWN_HASHES: Final = "rows of vLLM "  # layouts whose ids only vLLM can compute


def terms_of(tenant: Tenant, space: Space | None = None) -> dict[str, Any] | None:
    """The answer's `requests`; None: keep none. With `space`, of a handshake: the other spaces in
    which the same prompt may be stored. Inside the tenant's scope."""
    if not tenant.samples_enabled:
        return None
    if space is None:
        return {"one_in": ONE_IN}
    return {"one_in": ONE_IN, "kin": [_kin(each) for each in kin_of(space)]}


def kin_of(space: Space) -> list[Space]:
    """Spaces of the same model and rank with another fingerprint, last used first; MOST_KIN at
    most. One query, inside the tenant's scope."""
    identity = space.identity
    rows = Space.objects.filter(identity__model=identity.get("model"), is_leaving=False)
    for name in ("tp_rank", "pp_rank"):
        rows = rows.filter(**{f"identity__{name}": identity.get(name, 0)})
    rows = rows.exclude(pk=space.pk).exclude(identity__layout__startswith=_OWN_HASHES)
    used = rows.annotate(used_at=Max("sessions__last_heartbeat_at"))
    return list(used.order_by(F("used_at").desc(nulls_last=True), "-pk")[:MOST_KIN])


def _kin(space: Space) -> dict[str, Any]:
    return {
        "space": space.pk,
        "fingerprint": space.fingerprint,
        "chunk_tokens": space.chunk_tokens,
        "heads": space.is_canonical,
    }


def accept(*, tenant: Tenant, session: NodeSession, records: object) -> bool:
    """Takes the records of a heartbeat. Returns False if they were dropped, which is counted.

    One statement; records that are sent again overwrite themselves. Raises nothing of its own: a
    heartbeat never fails for them. Inside the tenant's scope.
    """
    if not tenant.samples_enabled:
        return _dropped("off")
    if not isinstance(records, list) or len(records) > MOST_SENT:
        return _dropped("malformed")
    now_s = time.time()
    try:
        found = [RequestRecord.from_dict(each, now_s) for each in records]
    except Misuse:
        return _dropped("malformed")
    rows = {each.number % SLOTS: _row(session, each) for each in found}
    KeptRequest.objects.bulk_create(
        rows.values(),
        update_conflicts=True,
        unique_fields=("session", "slot"),
        update_fields=_COLUMNS,
    )
    return True


def _row(session: NodeSession, found: RequestRecord) -> KeptRequest:
    return KeptRequest(
        tenant_id=session.tenant_id,
        session=session,
        space_id=session.space_id,
        slot=found.number % SLOTS,
        at=datetime.fromtimestamp(found.at_s, UTC),
        name=found.name,
        base=base_of(found.name),
        kept=found.kept.value,
        prompt_tokens=found.prompt_tokens,
        local_tokens=found.local_tokens,
        asked_tokens=found.asked_tokens,
        found_tokens=found.found_tokens,
        loaded_tokens=found.loaded_tokens,
        miss_chunk=found.miss_chunk,
        miss_id=found.miss_id,
        reason=found.reason or "",
        outcome=found.outcome.value,
        match_ms=found.match_ms,
        load_ms=found.load_ms,
        load_failed=found.load_failed,
        stride=found.chain.stride,
        chain=found.chain.ids,
        kin=[
            {"space": id_, "stride": cells.stride, "ids": b64encode(cells.ids).decode()}
            for id_, cells in found.kin
        ],
    )


_COLUMNS: Final = [
    field.name
    for field in KeptRequest._meta.concrete_fields
    if field.name not in ("id", "tenant", "session", "slot")
]


def base_of(name: str) -> str:
    """An id without what engines put before it."""
    return _PREFIX.sub("", name.strip(), count=1)


def find(rows: QuerySet[KeptRequest], text: str) -> QuerySet[KeptRequest]:
    """Of `rows`, which the caller may see, those whose id is `text`, the newest first. Ids that
    engines or users made longer count, too."""
    base = base_of(text)
    if not base:
        return rows.none()
    return rows.filter(Q(base=base) | Q(base__startswith=f"{base}-")).order_by("-at", "-pk")


def prune() -> int:
    """Deletes what is older than a day, and the oldest of a tenant with more than MOST_ROWS."""
    doomed: int = KeptRequest.unscoped.filter(at__lt=timezone.now() - KEPT).delete()[0]
    for tenant_id in _crowded():
        with tenant_scope(tenant_id):
            rows = KeptRequest.objects.order_by("-at", "-pk")
            oldest = rows.values_list("at", flat=True)[MOST_ROWS : MOST_ROWS + 1].first()
            if oldest is not None:
                doomed += KeptRequest.objects.filter(at__lte=oldest).delete()[0]
    return doomed


def _crowded() -> Iterable[int]:
    """Tenants with more than MOST_ROWS. Counts by the index, one query."""
    counts = KeptRequest.unscoped.order_by().values("tenant_id").annotate(rows=Count("pk"))
    return list(counts.filter(rows__gt=MOST_ROWS).values_list("tenant_id", flat=True))


def _dropped(reason: str) -> bool:
    REQUESTS_DROPPED.add(reason)
    return False
