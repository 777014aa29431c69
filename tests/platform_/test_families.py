"""Handshakes that name a family, by engines of every intention."""

from dataclasses import replace

import pytest

from base.problems import Problem
from catalog import families, sessions
from catalog.models import FamilyMember, Space
from neve.formats.space import SpaceIdentity
from neve.node.membership import Attested, MemberState
from support.rows import IDENTITY, make_tenant
from tenants.audit import SYSTEM
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

PRODUCER = SpaceIdentity.from_dict(IDENTITY)
MEMBER = replace(PRODUCER, model="member", revision="files:2")
WEIGHTS = "5e1ec71e"


def handshake(tenant, identity=MEMBER, *, family="one", device="H200", selective_weights=WEIGHTS):
    applicant = families.Applicant(
        family=family,
        device=device,
        engine="vllm 1",
        identity=identity,
        max_chunk_tokens=256,
        selective_weights=selective_weights,
    )
    return sessions.open_session(
        tenant=tenant,
        node=f"{identity.model}-{device}",
        engine={"name": "vllm", "version": "1"},
        identity=identity,
        space_name=None,
        family=applicant if family else None,
        max_chunk_tokens=256,
        actor=SYSTEM,
        selective_weights=selective_weights,
    )


def note(session, state, **found):
    with tenant_scope(session.tenant_id):
        session.refresh_from_db()
        return families.note_attested(
            session=session, found=Attested(state, **found), actor=SYSTEM
        ).state


@pytest.fixture
def tenant():
    """With the family "one"."""
    tenant = make_tenant()
    space = handshake(tenant, PRODUCER, family=None).space
    families.create_family(tenant=tenant, name="one", space_id=space.pk, actor=SYSTEM)
    return tenant


def test_a_guessed_name_of_another_tenants_family_is_unknown(tenant):
    other = make_tenant()
    with pytest.raises(Problem, match="no family one") as refused:
        handshake(other)
    assert refused.value.kind == "not-found"
    with pytest.raises(Problem, match="no such space"):
        families.create_family(
            tenant=other, name="two", space_id=Space.unscoped.get().pk, actor=SYSTEM
        )
    assert not FamilyMember.unscoped.exists()


def test_weights_that_no_prompt_may_reach_must_be_the_producers(tenant):
    with pytest.raises(Problem, match="selective_weights") as refused:
        handshake(tenant, selective_weights="0ther")
    assert refused.value.kind == "fingerprint-clash"
    assert handshake(tenant).member.state == MemberState.ATTESTING
    # A member tells its own, and changes nothing of the producer's.
    assert Space.unscoped.get().selective_weights == WEIGHTS

    Space.unscoped.update(selective_weights="")  # a producer of an earlier version
    with pytest.raises(Problem, match="start it once") as refused:
        handshake(tenant)
    assert refused.value.kind == "conflict"
    assert handshake(tenant, PRODUCER).member.state == MemberState.PRODUCER
    assert handshake(tenant).member.state == MemberState.ATTESTING


@pytest.mark.parametrize("field", ["dtype", "kv_dtype", "layout", "bytes_per_token", "tp_size"])
def test_another_layout_is_no_member(tenant, field):
    value = getattr(MEMBER, field)
    other = replace(MEMBER, **{field: value * 2})
    with pytest.raises(Problem) as refused:
        handshake(tenant, other)
    assert refused.value.kind in ("fingerprint-clash", "conflict")


def test_a_verdict_holds_for_one_device_and_one_state_of_the_weights(tenant):
    session = handshake(tenant)
    assert note(session, MemberState.ATTACHED, blocks=9) == MemberState.ATTACHED
    assert handshake(tenant).member.state == MemberState.ATTACHED
    assert handshake(tenant, device="A100").member.state == MemberState.ATTESTING
    changed = replace(MEMBER, revision="files:3")
    assert handshake(tenant, changed).member.state == MemberState.ATTESTING
    # Changed in place: it asks for itself, and has proven nothing.
    assert note(handshake(tenant), MemberState.ATTESTING, weights="ab") == MemberState.ATTESTING


def test_a_refused_engine_cannot_talk_itself_in(tenant):
    session = handshake(tenant)
    assert note(session, MemberState.REFUSED, layer="layers.3") == MemberState.REFUSED
    assert note(session, MemberState.ATTACHED, blocks=99) == MemberState.REFUSED
    assert handshake(tenant).member.state == MemberState.REFUSED
    # Nor can it be the producer: that is known by its identity.
    session = handshake(tenant, PRODUCER)
    assert note(session, MemberState.REFUSED) == MemberState.PRODUCER
