"""The sum of hot quotas fits the hot tier's memory, unless an operator says otherwise."""

import pytest
from django.test import Client
from django.urls import reverse

from base.problems import Problem
from dashboard.storage import storage_use, summed
from storage import hot
from support.rows import make_key, make_person
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import AuditEvent, Quota, Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

MIB = 1 << 20


@pytest.fixture
def room(clean_hot) -> int:
    """The bytes of blocks that fit, in whole MiB."""
    return hot.capacity_bytes() // MIB * MIB


def quota_of(tenant: Tenant) -> int:
    return Quota.unscoped.get(tenant=tenant).hot_bytes


def make(slug: str, **fields) -> Tenant:
    return services.create_tenant(slug=slug, name=slug, **fields)


def test_default_quotas_fit_until_nothing_is_left(room):
    first, second = make("first"), make("second")
    assert quota_of(first) == room // 2 // MIB * MIB  # not 1 GiB
    assert quota_of(first) + quota_of(second) < room
    make("last", hot_bytes=room - quota_of(first) - quota_of(second))
    with pytest.raises(Problem, match="0 MiB that are left"):
        make("late")
    assert not Tenant.objects.filter(slug="late").exists()


def test_more_than_there_is_is_refused_with_the_numbers_and_taken_at_a_word(room):
    first, second = make("first", hot_bytes=room // 2), make("second", hot_bytes=room // 4)
    services.change_tenant(tenant=second, name="x", node_limit=1, is_active=False, actor=SYSTEM)
    limits = {"tenant": first, "cold_bytes": 0, "actor": SYSTEM}
    services.set_quota(**limits, hot_bytes=room)  # what an inactive tenant has is free
    for change in (
        lambda **word: services.set_quota(**limits, hot_bytes=room + 2 * MIB, **word),
        lambda **word: make("third", hot_bytes=MIB, **word),
        lambda **word: services.change_tenant(
            tenant=second, name="x", node_limit=1, is_active=True, actor=SYSTEM, **word
        ),
    ):
        with pytest.raises(Problem) as refusal:
            change()
        assert refusal.value.kind == "hot-overcommit"
        assert refusal.value.members["capacity_bytes"] == hot.capacity_bytes()
        numbers = refusal.value.members
        assert numbers["hot_bytes"] > numbers["left_bytes"]
        change(overcommit=True)
        told = AuditEvent.unscoped.first().after["overcommit"]
        assert told["capacity_bytes"] == hot.capacity_bytes()
    services.set_quota(**limits, hot_bytes=room // 2)  # less is always possible
    assert quota_of(first) == room // 2


def test_over_rest_the_word_is_a_member(room):
    tenant = make("acme", hot_bytes=MIB)
    operator = Client(headers={"Authorization": f"Bearer {make_key(None, 'operator')}"})

    def patch(**body):
        path = "/api/v1/tenants/acme/quota"
        return operator.patch(path, body, content_type="application/json")

    refused = patch(hot_bytes=2 * room)
    assert refused.status_code == 409
    assert refused.json()["field"] == "hot_bytes"
    assert refused.json()["left_bytes"] == hot.capacity_bytes()
    assert patch(overcommit=True).status_code == 400
    assert patch(hot_bytes=2 * room, overcommit="yes").status_code == 400
    assert quota_of(tenant) == MIB
    assert patch(hot_bytes=2 * room, overcommit=True).status_code == 200
    assert quota_of(tenant) == 2 * room


def test_the_admin_says_no_in_its_form(room):
    acme = make("acme", hot_bytes=room)
    person = make_person("op", staff=True)
    person.is_superuser = True
    person.save()
    admin = Client()
    admin.force_login(person)
    inlines = {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0}
    tenant = {"slug": "new", "name": "New", "node_limit": 1, "is_active": "on", **inlines}
    quota = {"hot_bytes": 2 * room, "cold_bytes": 0}
    add = reverse("admin:tenants_tenant_add")
    change = reverse("admin:tenants_quota_change", args=[Quota.unscoped.get(tenant=acme).pk])
    for address, form in ((add, tenant), (change, quota)):
        refused = admin.post(address, form)
        assert refused.status_code == 200
        assert "room for" in refused.content.decode()
        assert admin.post(address, form | {"overcommit": "on"}).status_code == 302
    assert quota_of(acme) == 2 * room
    assert Tenant.objects.filter(slug="new").exists()


def test_how_full_is_measured_against_the_smaller_of_promise_and_memory(room, clean_hot):
    fitting = make("fitting", hot_bytes=room)
    assert summed(list(storage_use((fitting,), 0).values())).hot_limit_bytes == room
    greedy = make("greedy", hot_bytes=2 * room, overcommit=True)
    both = summed(list(storage_use((fitting, greedy), 0).values()))
    assert both.is_short
    assert both.hot_quota_bytes == 3 * room
    assert 0.9 * room < both.hot_limit_bytes <= hot.capacity_bytes()
    with clean_hot.client() as client:  # somebody fills it
        for n in range(room // (8 * MIB)):
            client.set(f"x{n}", bytes(8 * MIB))
        left = storage_use((fitting,), 0)[fitting.pk].hot_limit_bytes
        client.flushall()
    assert left < 0.3 * room
