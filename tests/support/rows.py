"""Makes rows of the platform for tests, through its services if possible."""

import os
import time
from typing import Any
from uuid import uuid4

from allauth.socialaccount.models import SocialAccount
from allauth.usersessions.models import UserSession
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone

from catalog.models import (
    Context,
    Family,
    FamilyMember,
    Job,
    MoveRule,
    NodeSession,
    Pin,
    Round,
    Segment,
    SegmentCopy,
    Space,
    Store,
    Stray,
    UsageRollup,
)
from engines.models import Engine, Serving, WarmPolicy
from events import order, webhooks
from events.models import Delivery, Event
from events.services import Subject, emit
from incidents.models import Incident
from neve.formats.space import SpaceIdentity
from retention import services as retention
from tenants import invitations, services
from tenants.audit import SYSTEM
from tenants.models import Membership, Tenant
from tenants.scope import tenant_scope

IDENTITY = {
    "model": "org/tiny",
    "revision": "main",
    "dtype": "bfloat16",
    "kv_dtype": "bfloat16",
    "layout": "2,H,16,D",
    "layout_version": 1,
    "engine_block_tokens": 16,
    "bytes_per_token": 4096,
}


def make_tenant(slug: str | None = None, **fields: Any) -> Tenant:
    slug = slug or f"t{uuid4().hex[:10]}"
    fields = {
        "overcommit": True,
        **fields,
    }  # a test's server is small
    return services.create_tenant(slug=slug, name=slug.title(), **fields)


def make_key(tenant: Tenant | None, role: str, scopes: list[str] | None = None) -> str:
    """Issue an API key; return its plaintext. `scopes` None: those of the role."""
    return services.issue_key(tenant=tenant, role=role, name=f"{role} key", scopes=scopes)[1]


def make_person(name: str, *, staff: bool = False, **roles: str) -> Any:
    """Make a user. `roles`: tenant's slug → role of the membership."""
    person = get_user_model().objects.create_user(name, password="pw", is_staff=staff)
    for slug, role in roles.items():
        tenant = Tenant.objects.get(slug=slug)
        Membership.objects.create(user=person, tenant=tenant, role=role)
    return person


def make_sign_in(person: Any) -> UserSession:
    """A browser session of a person."""
    browser = Client()
    browser.force_login(person)
    return UserSession.objects.get(session_key=browser.session.session_key)


def make_space(tenant: Tenant, name: str = "space") -> Space:
    identity = SpaceIdentity.from_dict({**IDENTITY, "model": name})
    with tenant_scope(tenant.pk):
        return Space.objects.create(
            name=name,
            identity=identity.as_dict(),
            chunk_tokens=256,
            fingerprint=identity.fingerprint(tenant_id=tenant.pk, chunk_tokens=256).hex(),
        )


def make_session(space: Space, node: str = "node-1", **fields: Any) -> NodeSession:
    with tenant_scope(space.tenant_id):
        return NodeSession.objects.create(space=space, node=node, **fields)


def make_context(space: Space, name: str = "ctx", ids: list[bytes] | None = None) -> Context:
    ids = ids or [os.urandom(16) for _ in range(3)]
    with tenant_scope(space.tenant_id):
        return Context.objects.create(
            space=space, name=name, chain=b"".join(ids), blocks=len(ids), tokens=256 * len(ids)
        )


def make_segment(space: Space, **fields: Any) -> Segment:
    uuid = uuid4()
    defaults = {"object_key": f"v1/t{space.tenant_id}/x/{uuid}.seg", "state": "live"}
    with tenant_scope(space.tenant_id):
        return Segment.objects.create(space=space, uuid=uuid, **{**defaults, **fields})


def make_move(segment: Segment) -> dict[str, Any]:
    """A store, a rule that names it, and a copy that leaves it. Nobody listens at its address."""
    store = Store.objects.create(
        name=f"s-{uuid4().hex[:8]}", endpoint="http://127.0.0.1:9", bucket=uuid4().hex[:8],
        region="r", access_key="a", priority=50,
    )  # fmt: skip
    with tenant_scope(segment.tenant_id):
        copy = SegmentCopy.objects.create(segment=segment, store=store, state="leaving")
    rule = MoveRule.objects.create(name=f"r-{uuid4().hex[:8]}", target=store, is_active=False)
    return {"store": store, "move_rule": rule, "move": copy}


def make_member(space: Space, model: str = "twin", **fields: Any) -> FamilyMember:
    """The space becomes a family, if it is none yet, and gets a model."""
    fields = {"state": FamilyMember.State.ATTESTING, "key": uuid4().hex} | fields
    with tenant_scope(space.tenant_id):
        family, _ = Family.objects.get_or_create(space=space, defaults={"name": space.name})
        return FamilyMember.objects.create(family=family, model=model, revision="r", **fields)


def make_engine(space: Space, name: str | None = None, **fields: Any) -> Engine:
    """Unchecked, and nobody listens at its address."""
    fields = {"base_url": "http://127.0.0.1:9", "model": "tiny"} | fields
    with tenant_scope(space.tenant_id):
        engine = Engine.objects.create(name=name or f"e{uuid4().hex[:8]}", **fields)
        Serving.objects.create(engine=engine, space=space)
    return engine


def make_warm_policy(context: Context) -> WarmPolicy:
    """A paused one."""
    with tenant_scope(context.tenant_id):
        return WarmPolicy.objects.create(context=context, mode="keep", is_paused=True)


def make_incident(tenant: Tenant | None, kind: str = "hit_rate", **fields: Any) -> Incident:
    """One that opened now; not ended unless `ended_at` is given."""
    now = timezone.now()
    defaults = {"since": now, "opened_at": now, "words": "hit rate −40 points"}
    return Incident.unscoped.create(tenant=tenant, kind=kind, **{**defaults, **fields})


def make_everything(tenant: Tenant, count: int = 1) -> dict[str, Any]:
    """Make `count` rows of each kind that /api/v1 lists. Returns route name → last row."""
    last: dict[str, Any] = {"tenant": tenant}
    for n in range(count):
        space = make_space(tenant, f"space-{uuid4().hex[:8]}")
        key, _ = services.issue_key(tenant=tenant, role="team", name=f"k{n}")
        rule = retention.add_rule(
            tenant=tenant, space=space, overrides={"priority": 6}, actor=SYSTEM
        )
        with tenant_scope(tenant.pk):
            UsageRollup.objects.get_or_create(
                resolution_s=10, bucket_ts=int(time.time()) // 10 * 10 - 10 * n
            )
            job = Job.objects.create(kind="flush")
            Round.objects.get_or_create(side=Round.Side.BLOCKS)
        Stray.objects.create(object_key=f"v1/{uuid4()}", size_bytes=1, due_at=timezone.now())
        context = make_context(space)
        with tenant_scope(tenant.pk):  # already ended, so that the context can be changed
            Pin.objects.create(context=context, owner="key:0", until=timezone.now())
        member = make_member(space)
        webhook, _ = webhooks.add(
            tenant=tenant, url=f"http://127.0.0.1:9/{n}", types=["node.*"], actor=SYSTEM
        )
        subject: Subject = {"type": "node", "id": f"node-{n}", "name": f"node-{n}"}
        emit("node.up", tenant_id=tenant.pk, subject=subject)
        order.number_all()
        person = make_person(f"p-{uuid4().hex[:8]}", **{tenant.slug: "viewer"})
        last |= {
            "webhook": webhook,
            "delivery": Delivery.unscoped.filter(webhook=webhook).latest("pk"),
            "event": Event.unscoped.order_by("sequence").last(),
            "space": space,
            "node": make_session(space, f"node-{n}"),
            "context": context,
            "family": member.family,
            "member": member,
            "segment": (segment := make_segment(space)),
            **make_move(segment),
            "incident": make_incident(tenant, ended_at=timezone.now()),
            "job": job,
            "key": key,
            "rule": rule,
            "engine": make_engine(space),
            "warm_policy": make_warm_policy(context),
            "policy": tenant.retention,
            "membership": person.memberships.get(),
            "signin": make_sign_in(person),
            "identity": SocialAccount.objects.create(
                user=person, provider="sso", uid=uuid4().hex, extra_data={"sub": "s"}
            ),
            "invitation": invitations.invite(
                tenant=tenant, email=f"i{n}@example.com", role="viewer", link=str, actor=SYSTEM
            )[0],
        }
    return last
