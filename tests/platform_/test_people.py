"""People: how often a password may be tried, and what the audit says of them."""

import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
import urllib3
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from support.rows import make_person, make_tenant
from tenants import signing_in
from tenants.models import AuditEvent, Membership, Tenant

pytestmark = [
    *(pytest.mark.integration, pytest.mark.django_db),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def try_password(password: str, name: str = "ann", address: str = "10.0.0.1", path="/login/"):
    client = Client(REMOTE_ADDR=address)
    return client.post(path, {"username": name, "password": password})


def events(*actions: str) -> list[AuditEvent]:
    return list(AuditEvent.unscoped.filter(action__in=actions).order_by("pk"))


def test_after_ten_wrong_passwords_the_right_one_waits():
    make_person("ann")
    for _ in range(10):
        assert try_password("wrong").status_code == 200
    for _ in range(50):
        refused = try_password("wrong")
    for path in ("/login/", "/login/?next=/admin/"):
        refused = try_password("pw", path=path)
        assert refused.status_code == 429
        assert 540 < int(refused["Retry-After"]) <= 600
        assert "Try again in 10 minutes" in refused.content.decode()
    assert len(events("login.fail")) == 10  # a locked door writes nothing
    assert try_password("pw", address="10.0.0.2").status_code == 302  # nobody is locked out
    AuditEvent.unscoped.update(at=timezone.now() - signing_in.WINDOW)
    assert try_password("pw").status_code == 302


def test_one_address_tries_a_hundred_passwords_of_whatever_names(monkeypatch):
    monkeypatch.setattr(signing_in, "MOST_OF_ADDRESS", 12)
    make_person("ann")
    for number in range(12):
        assert try_password("wrong", name=f"guess-{number}").status_code == 200
    assert try_password("pw").status_code == 429
    assert len(events("login.fail")) == 12


def test_many_at_once_do_not_slip_past(control_plane):
    """Forty threads against a web process, with Django's own slow hashes."""
    door = f"{control_plane.url}/login/"
    pool = urllib3.PoolManager(40)
    page = pool.request("GET", door)
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.data.decode())[1]
    cookie = page.headers["Set-Cookie"].split(";")[0]
    name = f"crowd-{secrets.token_hex(4)}"
    fields = {"username": name, "password": "wrong", "csrfmiddlewaretoken": token}
    body = urlencode(fields)
    headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}

    def one(_: int) -> int:
        return pool.request("POST", door, body=body, headers=headers).status

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(one, range(40)))
    assert (answers.count(200), answers.count(429)) == (signing_in.MOST_OF_NAME, 30)


def test_sign_ins_are_audited_good_and_bad():
    make_person("ann")
    try_password("wrong")
    try_password("pw")
    try_password("pw", name="nobody")
    found = [
        (e.actor_name, e.action, e.object_type, e.object_id) for e in events("login", "login.fail")
    ]
    assert found == [
        ("ann", "login.fail", "address", "10.0.0.1"),
        ("ann", "login", "address", "10.0.0.1"),
        ("nobody", "login.fail", "address", "10.0.0.1"),
    ]
    assert all(event.request_id for event in events("login", "login.fail"))


def test_the_admin_has_no_door_of_its_own():
    make_person("ann")
    answer = try_password("pw", path="/admin/login/?next=/admin/tenants/")
    assert answer["Location"] == "/login/?next=/admin/tenants/"
    client = Client()
    client.force_login(get_user_model().objects.get(username="ann"))
    assert client.get("/admin/login/").status_code == 403


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("op", password="pw"))
    return client


def changes(model: str) -> list[tuple]:
    rows = AuditEvent.unscoped.filter(object_type=model).exclude(object_id="op").order_by("pk")
    return [(row.actor_name, row.action, row.before, row.after) for row in rows]


def test_what_operators_do_to_people_is_audited(operator):
    add = {
        "username": "bob",
        "usable_password": "true",
        "password1": "8-in-a-row",
        "password2": "8-in-a-row",
    }
    assert operator.post(reverse("admin:auth_user_add"), add).status_code == 302
    bob = get_user_model().objects.get(username="bob")
    form = {"username": "bob", "is_active": "on", "is_staff": "on", "date_joined_0": "2026-01-01"}
    form |= {"date_joined_1": "00:00:00", "groups": [Group.objects.create(name="crew").pk]}
    assert operator.post(reverse("admin:auth_user_change", args=[bob.pk]), form).status_code == 302
    password = {"usable_password": "true", "password1": "9-in-a-row", "password2": "9-in-a-row"}
    page = reverse("admin:auth_user_password_change", args=[bob.pk])
    assert operator.post(page, password).status_code == 302
    form = {"action": "delete_selected", "_selected_action": [bob.pk], "post": "yes"}
    assert operator.post(reverse("admin:auth_user_changelist"), form).status_code == 302

    found = [change for change in changes("user") if change[0] == "op"]
    assert [action for _, action, _, _ in found] == [
        "user.create", "user.change", "user.change", "user.change", "user.remove",
    ]  # fmt: skip
    assert found[0][3]["username"] == "bob"
    assert found[1][2:] == ({"is_staff": False}, {"is_staff": True})
    assert found[2][2:] == ({}, {"groups": "crew"})
    assert found[3][2:] == ({"password": None}, {"password": "changed"})
    assert "pbkdf2" not in str(found)
    assert "md5" not in str(found)


def test_memberships_are_audited_and_an_unchanged_tenant_is_not(operator):
    tenant, ann = make_tenant("acme"), make_person("ann")
    form = {
        "name": tenant.name, "node_limit": tenant.node_limit, "is_active": "on",
        "memberships-TOTAL_FORMS": 1, "memberships-INITIAL_FORMS": 0,
        "memberships-0-user": ann.pk, "memberships-0-role": "viewer",
    }  # fmt: skip
    page = reverse("admin:tenants_tenant_change", args=[tenant.pk])
    assert operator.post(page, form).status_code == 302
    member = Membership.objects.get()
    form |= {
        "memberships-INITIAL_FORMS": 1,
        "memberships-0-id": member.pk,
        "memberships-0-role": "team",
    }
    form |= {"memberships-0-tenant": tenant.pk}
    assert operator.post(page, form).status_code == 302
    assert operator.post(page, form | {"memberships-0-DELETE": "on"}).status_code == 302
    assert not Membership.objects.exists()
    whole = {"user": "ann", "tenant": "acme"}
    assert changes("membership") == [
        ("op", "membership.create", None, {**whole, "role": "viewer"}),
        ("op", "membership.change", {"role": "viewer"}, {"role": "team"}),
        ("op", "membership.remove", {**whole, "role": "team"}, None),
    ]
    assert not AuditEvent.unscoped.filter(action="tenant.change").exists()


def test_a_removed_tenant_takes_its_memberships_and_leaves_the_trail():
    make_tenant("acme")
    make_person("ann", acme="team")
    Tenant.objects.filter(slug="acme").delete()
    event = AuditEvent.unscoped.get(action="membership.remove")
    assert (event.tenant_id, event.before["tenant"]) == (None, "acme")


def test_commands_are_audited_as_the_system(monkeypatch):
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "first-of-all")
    call_command("createsuperuser", username="root", email="", interactive=False, verbosity=0)
    user = get_user_model().objects.get(username="root")
    user.set_password("second-of-all")
    user.save()
    assert [change[:2] for change in changes("user")] == [
        ("system", "user.create"),
        ("system", "user.change"),
    ]


def test_signing_in_itself_changes_nobody():
    make_person("ann")
    before = len(changes("user"))
    assert try_password("pw").status_code == 302
    assert len(changes("user")) == before
