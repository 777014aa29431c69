"""Members of a family: how many the platform remembers, and what it writes of them."""

import pytest

from base.problems import Problem
from catalog import families, sessions
from catalog.models import FamilyMember
from neve.formats.space import SpaceIdentity
from neve.node.membership import Attested, MemberState
from support.rows import IDENTITY, make_tenant
from tenants.audit import SYSTEM
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

MOST = 3


def open_session(tenant, *, model="tiny", family="llamas"):
    identity = SpaceIdentity.from_dict({**IDENTITY, "model": model})
    applicant = families.Applicant(
        family=family,
        device="cpu",
        engine="vllm 1",
        identity=identity,
        max_chunk_tokens=256,
        selective_weights="5e1ec71e",
    )
    return sessions.open_session(
        tenant=tenant,
        node=model,
        engine={"name": "vllm", "version": "1"},
        identity=identity,
        space_name=None,
        family=applicant if family else None,
        max_chunk_tokens=256,
        actor=SYSTEM,
        selective_weights="5e1ec71e",
    )


def report(session, state, weights=""):
    with tenant_scope(session.tenant_id):
        return families.note_attested(
            session=session, found=Attested(state, weights, blocks=8), actor=SYSTEM
        )


def weights_of(tenant):
    with tenant_scope(tenant.pk):
        return set(FamilyMember.objects.values_list("weights", flat=True))


@pytest.fixture
def tenant(monkeypatch):
    monkeypatch.setattr(families, "MEMBERS_MOST", MOST)
    tenant = make_tenant()
    space = open_session(tenant, family=None).space
    families.create_family(tenant=tenant, name="llamas", space_id=space.pk, actor=SYSTEM)
    return tenant


def test_weights_that_change_in_place_for_ever_do_not_fill_a_family(tenant):
    session = open_session(tenant, model="twin")
    for number in range(2 * MOST):
        report(session, MemberState.ATTACHED, weights=f"{number}")
    assert weights_of(tenant) == {"3", "4", "5"}
    assert open_session(tenant, model="other").member.state == MemberState.ATTESTING


def test_a_refusal_is_not_forgotten(tenant):
    session = open_session(tenant, model="twin")
    for number in range(MOST - 1):
        report(session, MemberState.REFUSED, weights=f"{number}")
    report(session, MemberState.ATTESTING, weights="last")
    assert weights_of(tenant) == {"0", "1", "last"}
    with pytest.raises(Problem) as refusal:
        open_session(tenant, model="other")
    assert refusal.value.kind == "limit-reached"


def test_a_verdict_keeps_what_heartbeats_counted_meanwhile(tenant):
    session = open_session(tenant, model="twin")
    assert session.member is not None  # read before the heartbeat
    with tenant_scope(tenant.pk):
        families.count_hits(member_id=session.member.pk, tokens=64)
    assert report(session, MemberState.ATTACHED).hit_tokens == 64


def test_a_verdict_of_a_family_that_was_removed_is_refused(tenant):
    session = open_session(tenant, model="twin")
    assert session.member is not None
    families.remove_family(family=session.member.family, actor=SYSTEM)
    with pytest.raises(Problem) as refusal:
        report(session, MemberState.ATTACHED)
    assert refusal.value.kind == "conflict"
