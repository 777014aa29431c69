"""Families: who shares a producer's space, as engines proved it (see `neve.engine.attest`).

The bytes are compared in the engine. The platform keeps the verdict: it holds for all engines with
the same model, weights, engine version and kind of device, across restarts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from base.preconditions import require_unchanged
from base.problems import Problem
from catalog.clashes import clash
from catalog.models import Family, FamilyMember, NodeSession, Space
from catalog.spaces import identity_of
from catalog.usage import bounded
from neve.formats.parts import PartGroup, chunk_tokens_of
from neve.formats.space import SpaceIdentity
from neve.node.membership import Attested, MemberState, differing_layout
from tenants.audit import Actor, record
from tenants.models import Tenant
from tenants.scope import tenant_scope

MEMBERS_MOST = 200  # of a family: its models, each with its versions


@dataclass(frozen=True)
class Applicant:
    """An engine that names a family in its handshake."""

    family: str
    device: str
    engine: str
    identity: SpaceIdentity
    max_chunk_tokens: int
    groups: Sequence[PartGroup] = ()
    selective_weights: str = ""


@transaction.atomic
def create_family(*, tenant: Tenant, name: str, space_id: int, actor: Actor) -> Family:
    """Makes the space of a producer sharable under a name.

    Raises Problem: malformed (no such space), conflict (name or space has a family already).
    """
    with tenant_scope(tenant.pk):
        space = Space.objects.filter(pk=space_id, is_leaving=False).first()
        if space is None:
            raise Problem("malformed", "space: the tenant has no such space.", field="space")
        try:
            with transaction.atomic():
                family = Family.objects.create(name=name, space=space)
        except IntegrityError as error:
            raise Problem(
                "conflict", f"A family is called {name}, or {space.name} is one already."
            ) from error
    record(
        actor=actor,
        tenant_id=tenant.pk,
        action="family.create",
        obj=family,
        after={"name": name, "space": space.name},
    )
    return family


@transaction.atomic
def remove_family(*, family: Family, actor: Actor) -> None:
    """Members share no longer: their sessions end. The producer keeps its space and its KV."""
    require_unchanged(family)
    with tenant_scope(family.tenant_id):
        sessions = NodeSession.objects.filter(member__family=family, ended_at=None)
        sessions.exclude(member__state=MemberState.PRODUCER).update(ended_at=timezone.now())
        record(
            actor=actor,
            tenant_id=family.tenant_id,
            action="family.remove",
            obj=family,
            before={"name": family.name, "space": family.space.name},
        )
        family.delete()


def join(applicant: Applicant) -> tuple[Space, FamilyMember]:
    """The space that an engine of the family uses, and what is known of such engines.

    Inside the tenant's scope and a transaction that locks the tenant. Raises Problem: not-found (no
    such family), conflict (the producer never ran on such a rank), fingerprint-clash (another
    layout, or other weights where no proof by prompts may reach), limit-reached.
    """
    family = Family.objects.select_related("space").filter(name=applicant.family).first()
    if family is None:
        raise Problem("not-found", f"There is no family {applicant.family}.", field="family")
    space = _space_of_rank(family, applicant.identity)
    producer = identity_of(space, owner="family")
    chunk_tokens = chunk_tokens_of(
        applicant.identity, applicant.groups, max_chunk_tokens=applicant.max_chunk_tokens
    )
    for field in differing_layout(producer, applicant.identity):
        raise clash(
            field,
            expected=getattr(producer, field),
            got=getattr(applicant.identity, field),
            owner="family",
        )
    if space.chunk_tokens > chunk_tokens:
        raise clash(
            "max_chunk_tokens", expected=space.chunk_tokens, got=chunk_tokens, owner="family"
        )
    is_producer = producer == applicant.identity
    if not is_producer and applicant.selective_weights:  # else: another process of it tells them
        _require_selective_weights(family, space, applicant.selective_weights)
    member = _member(
        family,
        MemberState.PRODUCER if is_producer else MemberState.ATTESTING,
        model=applicant.identity.model,
        revision=applicant.identity.revision,
        device=applicant.device,
        engine=applicant.engine,
        weights="",
    )
    return space, member


@transaction.atomic
def note_attested(*, session: NodeSession, found: Attested, actor: Actor) -> FamilyMember:
    """What an engine found. A refusal stays until `let_try_again`.

    Inside the tenant's scope. Raises Problem (conflict) if the session is of no family.
    """
    Tenant.objects.select_for_update().get(pk=session.tenant_id)
    # All fields are written below: these locks, in the order of a heartbeat's, keep what
    # `let_try_again` and `count_hits` write meanwhile.
    session = NodeSession.objects.select_for_update().get(pk=session.pk)
    member = FamilyMember.objects.select_for_update().filter(sessions=session).first()
    if member is None:
        raise Problem("conflict", "This session is of no family.")
    if found.weights != member.weights:
        member = _member(
            member.family,
            MemberState.ATTESTING,
            model=member.model,
            revision=member.revision,
            device=member.device,
            engine=member.engine,
            weights=found.weights,
        )
        NodeSession.objects.filter(pk=session.pk).update(member=member)
    may_change = member.state in (MemberState.ATTESTING, MemberState.ATTACHED)
    if found.state is MemberState.ATTESTING or found.state == member.state or not may_change:
        return member
    if found.state is MemberState.REFUSED and member.state == MemberState.ATTACHED:
        member.generation += 1  # other engines of this kind share no longer
    before = member.state
    member.state = found.state
    member.decided_at = timezone.now()
    member.blocks, member.near = found.blocks, found.near
    member.layer = found.layer
    member.first_token, member.end_token = found.first_token, found.end_token
    member.save()
    record(
        actor=actor,
        tenant_id=session.tenant_id,
        action=f"family.{'attach' if found.state is MemberState.ATTACHED else 'refuse'}",
        obj=member,
        before={"state": before},
        after={"state": member.state, "model": member.model, "layer": member.layer},
    )
    return member


@transaction.atomic
def let_try_again(*, member: FamilyMember, actor: Actor) -> FamilyMember:
    """Forgets the verdict: such engines prove their KV anew, also those that run.

    Raises Problem (conflict) for the producer.
    """
    with tenant_scope(member.tenant_id):
        row = FamilyMember.objects.select_for_update().get(pk=member.pk)
        require_unchanged(row)
        if row.state == MemberState.PRODUCER:
            raise Problem("conflict", "The producer has nothing to prove.")
        before = row.state
        row.state = MemberState.ATTESTING
        row.generation += 1
        row.decided_at = row.first_token = row.end_token = None
        row.blocks = row.near = 0
        row.layer = ""
        row.save()
    record(
        actor=actor,
        tenant_id=row.tenant_id,
        action="family.try_again",
        obj=row,
        before={"state": before},
        after={"state": row.state, "model": row.model},
    )
    return row


def count_hits(*, member_id: int, tokens: int) -> None:
    """Inside the tenant's scope and a transaction: a heartbeat's `family_hit_tokens`."""
    member = FamilyMember.objects.select_for_update().get(pk=member_id)
    member.hit_tokens = bounded(member.hit_tokens + tokens)
    member.save(update_fields=["hit_tokens"])


def _require_selective_weights(family: Family, space: Space, found: str) -> None:
    """A difference in one row of an embedding, or in one expert, is in no proof whose prompts have
    no such token."""
    if not space.selective_weights:
        raise Problem(
            "conflict",
            f"The producer of {family.name} has not told its embeddings yet: start it once with "
            "this version of Neve.",
        )
    if space.selective_weights != found:
        raise clash(
            "selective_weights", expected=space.selective_weights, got=found, owner="family"
        )


def _space_of_rank(family: Family, identity: SpaceIdentity) -> Space:
    """The producer's space of the same rank: each rank has its own."""
    first = identity_of(family.space, owner="family")
    rank = (identity.tp_rank, identity.pp_rank)
    if rank == (first.tp_rank, first.pp_rank):
        return family.space
    found = Space.objects.filter(
        is_leaving=False,
        identity__model=first.model,
        identity__revision=first.revision,
        identity__tp_size=first.tp_size,
        identity__pp_size=first.pp_size,
        identity__tp_rank=identity.tp_rank,
        identity__pp_rank=identity.pp_rank,
    ).first()
    if found is None:
        raise Problem(
            "conflict",
            f"The producer of {family.name} has no space for TP rank {identity.tp_rank} and PP "
            f"rank {identity.pp_rank} yet: start it first, split in the same way.",
        )
    return found


def _member(family: Family, state: MemberState, **named: str) -> FamilyMember:
    text = "\0".join(named[name] for name in sorted(named))
    key = blake2b(text.encode(), digest_size=16).hexdigest()
    member = FamilyMember.objects.select_for_update().filter(family=family, key=key).first()
    if member is not None:
        return member
    if FamilyMember.objects.filter(family=family).count() >= MEMBERS_MOST:
        _forget_one(family)
    return FamilyMember.objects.create(family=family, key=key, state=state, **named)


def _forget_one(family: Family) -> None:
    """Makes room for a member: whoever comes back after it was forgotten proves its KV anew.

    Weights that change in place make a member each time. Of members without a session, the one that
    was seen longest ago goes; refusals and the producer stay. Raises Problem (limit-reached).
    """
    connected = NodeSession.objects.filter(member=OuterRef("pk"), ended_at=None)
    stay = (MemberState.PRODUCER, MemberState.REFUSED)
    members = FamilyMember.objects.filter(family=family).exclude(state__in=stay)
    oldest = members.exclude(Exists(connected)).order_by("seen_at", "pk").first()
    if oldest is None:
        raise Problem(
            "limit-reached",
            f"The family {family.name} has {MEMBERS_MOST} members, the most that it may have.",
            limit="family_members",
            most=MEMBERS_MOST,
        )
    oldest.delete()
