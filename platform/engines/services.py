"""Engines: registered by people and keys, announced by nodes, checked, chosen for a space.

An engine serves spaces of its own tenant only. Calls of an engine happen outside of transactions:
SQLite has one writer, and an engine may be slow.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from base import outbound, sealing
from base.preconditions import require_unchanged
from base.problems import Problem
from catalog.models import NodeSession, Space
from catalog.sessions import live_since
from engines import client
from engines.client import EngineAddress, EngineFailed
from engines.models import Engine, Serving
from tenants.audit import Actor, record
from tenants.models import Tenant
from tenants.scope import tenant_scope

MOST_REGISTERED = 100  # of a tenant
MOST_ANNOUNCED = 256
CHECK_EVERY_S = 30
CHECK_MOST_S = 600  # pause after many failures
CHECKS = 24  # of one tick and tenant, CHECKS_AT_ONCE at a time
CHECKS_AT_ONCE = 8
_KEY = "engine key"  # purpose of the seal


def tidy_url(url: str, *, field: str = "base_url") -> str:
    """Without a slash or /v1 at the end. Raises Problem (malformed, address-refused)."""
    tidy = url.rstrip("/").removesuffix("/v1").rstrip("/")
    if "?" in tidy:
        raise Problem("malformed", f"{field}: has a query; leave it out.", field=field)
    outbound.check(tidy, field=field)
    return tidy


def add_engine(
    *,
    tenant: Tenant,
    name: str,
    base_url: str,
    model: str,
    spaces: Sequence[Space],
    api_key: str = "",
    gpus: int | None = None,
    is_prefill: bool = False,
    actor: Actor,
) -> Engine:
    """Register an engine and check it. `spaces`: rows of the tenant.

    Raises Problem: malformed, address-refused, limit-reached, conflict (the name is taken).
    """
    base_url = tidy_url(base_url)
    try:
        with transaction.atomic(), tenant_scope(tenant.pk):
            Tenant.objects.select_for_update().get(pk=tenant.pk)  # counts are exact
            _require_room(Engine.Source.REGISTERED, MOST_REGISTERED)
            engine = Engine.objects.create(
                name=name,
                base_url=base_url,
                model=model,
                gpus=gpus,
                is_prefill=is_prefill,
                sealed_key=_sealed(api_key),
            )
            _set_spaces(engine, spaces)
            after = facts(engine)
            record(actor=actor, tenant_id=tenant.pk, action="engine.add", obj=engine, after=after)
    except IntegrityError as error:
        raise _name_taken(name) from error
    check_engine(engine)
    return engine


def change_engine(*, engine: Engine, actor: Actor, **fields: Any) -> Engine:
    """`fields`: name, base_url, model, spaces, api_key, gpus, is_prefill; absent ones stay.
    Checks it anew.

    A new address without a new key drops the key: it was meant for the old address.
    Raises Problem: malformed, address-refused, conflict (also for an announced engine).
    """
    _require_registered(engine)
    if "base_url" in fields:
        fields["base_url"] = tidy_url(fields["base_url"])
    spaces = fields.pop("spaces", None)
    api_key = fields.pop("api_key", None)
    try:
        with transaction.atomic(), tenant_scope(engine.tenant_id):
            row = Engine.objects.select_for_update().filter(pk=engine.pk).first()
            if row is None:
                raise Problem("not-found", "This engine was deleted.")
            require_unchanged(row)
            before = facts(row)
            if fields.get("base_url", row.base_url) != row.base_url:
                api_key = api_key or ""
            for name, value in fields.items():
                setattr(row, name, value)
            if api_key is not None:
                row.sealed_key = _sealed(api_key)
            row.state, row.error, row.failures = Engine.State.UNKNOWN, "", 0
            row.updated_at = row.check_at = timezone.now()
            row.save()
            if spaces is not None:
                _set_spaces(row, spaces)
            after = facts(row) | ({"api_key": "changed"} if api_key is not None else {})
            record(
                actor=actor,
                tenant_id=row.tenant_id,
                action="engine.change",
                obj=row,
                before=before,
                after=after,
            )
    except IntegrityError as error:
        raise _name_taken(str(fields.get("name"))) from error
    check_engine(row)
    return row


@transaction.atomic
def remove_engine(*, engine: Engine, actor: Actor) -> None:
    """Raises Problem (conflict) for an announced one: it goes with its node's session."""
    _require_registered(engine)
    require_unchanged(engine)
    with tenant_scope(engine.tenant_id):
        before = facts(engine)
        record(
            actor=actor,
            tenant_id=engine.tenant_id,
            action="engine.remove",
            obj=engine,
            before=before,
        )
        Engine.objects.filter(pk=engine.pk).delete()


def facts(engine: Engine) -> dict[str, Any]:
    """For the audit; no key. Inside the tenant's scope."""
    return {
        **{"name": engine.name, "base_url": engine.base_url, "model": engine.model},
        **{"gpus": engine.gpus, "has_key": bool(engine.sealed_key)},
        "is_prefill": engine.is_prefill,
        "spaces": sorted(Serving.objects.filter(engine=engine).values_list("space_id", flat=True)),
    }


def announce(
    *, session: NodeSession, url: str, model: str, gpus: int | None, shards: int | None
) -> None:
    """A node's handshake names its engine. It serves the session's space while that is live.

    Inside the tenant's scope and the handshake's transaction, which holds the tenant's lock.
    Beyond MOST_ANNOUNCED nothing is noted: the handshake itself succeeds.
    Raises Problem (malformed) for an address that is no http URL; whether the platform may connect
    there shows in the engine's state.
    """
    url = url.rstrip("/").removesuffix("/v1").rstrip("/")
    outbound.check_form(url, field="engine.url")
    engine = Engine.objects.filter(
        source=Engine.Source.ANNOUNCED, base_url=url, model=model
    ).first()
    if engine is None:
        if Engine.objects.filter(source=Engine.Source.ANNOUNCED).count() >= MOST_ANNOUNCED:
            return
        engine = Engine.objects.create(
            name=session.node, base_url=url, model=model, gpus=gpus, source=Engine.Source.ANNOUNCED
        )
    elif engine.gpus != gpus and gpus is not None:
        engine.gpus = gpus
        engine.save(update_fields=["gpus"])
    Serving.objects.update_or_create(
        engine=engine,
        session=session,
        defaults={"space_id": session.space_id, "shards": shards},
    )


def forget_silent(tenant_id: int) -> int:
    """Delete announced engines all of whose sessions have ended or are silent."""
    with tenant_scope(tenant_id):
        live = Serving.objects.filter(_live(), engine=OuterRef("pk"))
        gone = Engine.objects.filter(~Exists(live), source=Engine.Source.ANNOUNCED)
        return int(gone.delete()[0])


def _live() -> Q:
    return Q(session__ended_at=None, session__last_heartbeat_at__gt=live_since())


def serving(space: Space, *, only: Engine | None = None) -> list[Engine]:
    """Healthy engines of a space: those of prefill pools first, then registered ones. Of the
    space's tenant, always."""
    with tenant_scope(space.tenant_id):
        found = _of_space(space).filter(state=Engine.State.HEALTHY)
        if only is not None:
            found = found.filter(pk=only.pk)
        return list(found.order_by("-is_prefill", "-source", "failures", "pk")[:8])


def require_serving(space: Space, *, only: Engine | None = None) -> list[Engine]:
    """`serving`, at least one. Raises Problem (no-engine), which says why the others do not."""
    found = serving(space, only=only)
    if not found:
        raise no_engine(space)
    return found


def no_engine(space: Space, words: Sequence[str] = ()) -> Problem:
    """`words`: why the engines that were asked failed."""
    reasons = list(words)
    if not reasons:
        with tenant_scope(space.tenant_id):
            known = _of_space(space).order_by("-source", "pk")[:3]
            reasons = [f"{each.name} is {each.state}: {each.error or '-'}" for each in known]
    why = "; ".join(reasons) if reasons else "none is registered or announced"
    return Problem(
        "no-engine",
        f"No healthy engine serves the space {space.name} ({why}).",
        space=space.pk,
    )


def shards_of(space: Space) -> int | None:
    """Blocks of a chunk, as a node of the space announced; None if none did."""
    with tenant_scope(space.tenant_id):
        said = Serving.objects.filter(space=space, shards__isnull=False).order_by("-pk")
        return said.values_list("shards", flat=True).first()


def gpus_of(engine: Engine, space: Space) -> int | None:
    """GPUs of a prefill on this engine; None if neither it nor the space says."""
    if engine.gpus is not None:
        return engine.gpus
    if space.is_canonical:
        return None  # this layout names no TP size
    sizes = [space.identity.get(name, 1) for name in ("tp_size", "pp_size")]
    return sizes[0] * sizes[1] if all(isinstance(size, int) for size in sizes) else None


def address_of(engine: Engine) -> EngineAddress:
    """Raises EngineFailed if its key cannot be unsealed."""
    return EngineAddress(engine.base_url, engine.model, _unsealed(bytes(engine.sealed_key)))


def check_engine(engine: Engine) -> Engine:
    """Ask the engine for its models, and note the outcome. Not inside a transaction."""
    _note(engine, _outcome(engine, _models_of(engine)))
    return engine


def check_due(tenant_id: int) -> int:
    """Check the engines whose turn it is, several at a time. Returns how many."""
    with tenant_scope(tenant_id):
        due = Engine.objects.filter(check_at__lte=timezone.now()).order_by("check_at")[:CHECKS]
        asked = [(engine, _models_of(engine)) for engine in due]
    if not asked:
        return 0
    with ThreadPoolExecutor(CHECKS_AT_ONCE, thread_name_prefix="neve-check") as pool:
        outcomes = list(pool.map(lambda each: _outcome(*each), asked))
    for (engine, _), error in zip(asked, outcomes, strict=True):
        _note(engine, error)
    return len(asked)


def _models_of(engine: Engine) -> list[tuple[str, str]]:
    """Name and model of the spaces that it is named for by hand."""
    with tenant_scope(engine.tenant_id):
        rows = Serving.objects.filter(engine=engine, session=None).select_related("space")
        return [(row.space.name, str(row.space.identity.get("model", ""))) for row in rows]


def _outcome(engine: Engine, models: Sequence[tuple[str, str]]) -> str:
    """What is wrong; "": healthy. No database: runs in threads."""
    try:
        root = client.served_root(address_of(engine))
    except EngineFailed as failure:
        return str(failure)
    except Problem as problem:
        return problem.detail
    for space, model in models:
        if root is not None and model not in (root, PurePosixPath(root).name, engine.model):
            return f"it serves {root}, and the space {space} is of {model}"
    return ""


def _note(engine: Engine, error: str) -> None:
    now = timezone.now()
    failures = engine.failures + 1 if error else 0
    pause_s = min(CHECK_EVERY_S * 2 ** min(max(0, failures - 3), 10), CHECK_MOST_S)
    engine.state = Engine.State.UNHEALTHY if error else Engine.State.HEALTHY
    engine.error, engine.failures, engine.checked_at = error[:300], failures, now
    engine.check_at = now + timedelta(seconds=pause_s)
    with tenant_scope(engine.tenant_id):  # the address may have changed meanwhile: then not
        Engine.objects.filter(pk=engine.pk, updated_at=engine.updated_at).update(
            state=engine.state,
            error=engine.error,
            failures=failures,
            checked_at=now,
            check_at=engine.check_at,
        )


def _of_space(space: Space) -> QuerySet[Engine]:
    """Inside the tenant's scope."""
    mine = Serving.objects.filter(Q(session=None) | _live(), engine=OuterRef("pk"), space=space)
    return Engine.objects.filter(Exists(mine))


def _set_spaces(engine: Engine, spaces: Sequence[Space]) -> None:
    """Inside the tenant's scope."""
    if len(spaces) > MOST_REGISTERED:
        raise Problem("malformed", f"spaces: at most {MOST_REGISTERED}.", field="spaces")
    Serving.objects.filter(engine=engine, session=None).delete()
    for space in {each.pk: each for each in spaces}.values():
        Serving.objects.create(engine=engine, space=space)


def _require_room(source: Engine.Source, most: int) -> None:
    there = Engine.objects.filter(source=source).count()
    if there >= most:
        raise Problem(
            "limit-reached",
            f"engines: the tenant has {there} {source} engines and the limit is {most}.",
            limit="engines",
            most=most,
        )


def _require_registered(engine: Engine) -> None:
    if engine.source == Engine.Source.ANNOUNCED:
        raise Problem(
            "conflict",
            "A node announced this engine: change the node's engine_url, or register the engine "
            "under a name of its own.",
        )


def _name_taken(name: str) -> Problem:
    return Problem("conflict", f"name: the tenant has an engine {name!r} already.", field="name")


def _sealed(api_key: str) -> bytes:
    return sealing.seal(api_key.encode(), purpose=_KEY) if api_key else b""


def _unsealed(sealed: bytes) -> str:
    if not sealed:
        return ""
    try:
        return sealing.unseal(sealed, purpose=_KEY).decode()
    except sealing.Unsealable as error:
        raise EngineFailed("its API key cannot be read any more: set api_key again") from error
