"""Invitations: the link is the right, once, until it ends; nobody gets more than it says."""

import re
from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import mail
from django.test import Client
from django.utils import timezone

from base.problems import Problem
from support.rows import make_key, make_person, make_tenant
from tenants import invitations
from tenants.audit import SYSTEM
from tenants.models import AuditEvent, Invitation, Membership

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

GOOD = "a-long-enough-word-9"


@pytest.fixture
def tenant(db):
    return make_tenant("acme")


@pytest.fixture
def mailing(monkeypatch, settings):
    """A mail server that keeps what it gets."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    monkeypatch.setitem(settings.ENV.mail_url, "EMAIL_HOST", "mail")
    return mail.outbox


def invite(tenant, email="ann@example.com", role="viewer"):
    return invitations.invite(
        tenant=tenant,
        email=email,
        role=role,
        link=lambda token: f"/invitations/{token}/",
        actor=SYSTEM,
    )


def accept(client, link, **form):
    return client.post(link, {"username": "ann", "password": GOOD} | form)


def roles():
    return dict(Membership.objects.values_list("user__username", "role"))


def test_a_link_makes_an_account_with_the_role_and_signs_in(client, tenant):
    made, link = invite(tenant)
    assert client.get(link).status_code == 200
    assert not Membership.objects.exists()  # opening it changes nothing
    assert accept(client, link)["Location"] == "/"
    assert roles() == {"ann": "viewer"}
    assert client.get("/").wsgi_request.user.email == "ann@example.com"
    made.refresh_from_db()
    assert made.accepted_by.username == "ann"


def test_a_form_can_not_choose_the_role_nor_become_an_operator(client, tenant):
    _, link = invite(tenant)
    accept(client, link, role="team", is_staff="1", is_superuser="1", email="root@example.com")
    person = get_user_model().objects.get()
    assert (person.is_staff, person.is_superuser, person.email) == (
        False,
        False,
        "ann@example.com",
    )
    assert roles() == {"ann": "viewer"}


def test_a_used_link_works_for_nobody_else(client, tenant):
    _, link = invite(tenant)
    accept(client, link)
    assert Client().get(link).status_code == 404
    assert accept(Client(), link, username="eve").status_code == 404
    assert roles() == {"ann": "viewer"}


def test_of_two_who_open_a_link_at_once_one_gets_in(tenant):
    made, _ = invite(tenant)
    same = Invitation.unscoped.get(pk=made.pk)
    ann, eve = make_person("ann"), make_person("eve")
    invitations.accept(invitation=made, user=ann, actor=SYSTEM)
    with pytest.raises(Problem, match="was used"):
        invitations.accept(invitation=same, user=eve, actor=SYSTEM)
    assert roles() == {"ann": "viewer"}


@pytest.mark.parametrize("how", ["ended", "revoked", "replaced", "unknown", "inactive tenant"])
def test_a_link_that_ended_looks_like_one_that_never_was(client, tenant, how):
    made, link = invite(tenant)
    if how == "ended":
        Invitation.unscoped.update(expires_at=timezone.now() - timedelta(seconds=1))
    elif how == "revoked":
        invitations.revoke(invitation=made, actor=SYSTEM)
    elif how == "replaced":
        invite(tenant, "ANN@example.com", "team")
    elif how == "inactive tenant":
        tenant.is_active = False
        tenant.save()
    else:
        link = f"/invitations/{'x' * 43}/"
    for answer in (client.get(link), accept(client, link)):
        assert answer.status_code == 404
        assert invitations.GONE in answer.content.decode()
    assert not get_user_model().objects.exists()


def test_the_token_is_long_and_neither_in_the_database_nor_in_the_log(client, tenant, log_lines):
    made, link = invite(tenant)
    assert accept(client, link, password="x").status_code == 400
    token = re.fullmatch(r"/invitations/([\w-]{43})/", link)[1]
    row = Invitation.unscoped.filter(pk=made.pk).values().get()
    assert token not in str(row)
    assert token not in str(list(AuditEvent.unscoped.values()))
    invitations.revoke(invitation=made, actor=SYSTEM)
    assert client.get(link).status_code == 404
    assert token not in "".join(log_lines())


def test_an_account_of_the_address_is_not_taken_over(client, tenant):
    owner = make_person("ann")
    owner.email = "Ann@Example.com"
    owner.save()
    _, link = invite(tenant)
    answer = accept(client, link, username="ann2")
    assert (answer.status_code, roles()) == (400, {})
    assert owner.check_password("pw")
    client.force_login(owner)  # and its owner accepts with it
    assert client.post(link)["Location"] == "/"
    assert roles() == {"ann": "viewer"}


def test_a_member_keeps_the_stronger_role_and_operators_use_no_link_up(client, tenant):
    ann = make_person("ann", acme="team")
    made, link = invite(tenant)
    client.force_login(make_person("root", staff=True))
    assert client.post(link).status_code == 400
    made.refresh_from_db()
    assert made.accepted_at is None
    invitations.accept(invitation=made, user=ann, actor=SYSTEM)
    assert roles() == {"ann": "team"}


def test_the_session_of_a_visitor_is_not_the_session_of_the_member(client, tenant):
    """Session fixation: a cookie that somebody planted before is worth nothing after."""
    session = client.session
    session["planted"] = True
    session.save()
    planted = session.session_key
    _, link = invite(tenant)
    accept(client, link)
    assert client.session.session_key != planted
    thief = Client()
    thief.cookies[settings.SESSION_COOKIE_NAME] = planted
    assert thief.get("/").status_code == 302


def test_weak_passwords_and_taken_names_are_refused(client, tenant):
    make_person("bob")
    _, link = invite(tenant)
    for form in ({"password": "short"}, {"username": "BOB"}, {"username": ""}, {"username": "a b"}):
        assert accept(client, link, **form).status_code == 400, form
    assert accept(client, link).status_code == 302


def test_mail_carries_the_link_and_nobody_else_sees_it(client, tenant, mailing):
    tenant.name = "Acme\nBcc: eve@example.com"
    tenant.save()
    made, link = invite(tenant)
    assert (link, made.is_mailed) == (None, True)
    [message] = mailing
    assert message.to == ["ann@example.com"]
    assert "\n" not in message.subject
    link = re.search(r"^/invitations/\S+", message.body, re.M)[0]
    assert accept(client, link).status_code == 302


def test_a_mail_server_that_fails_leaves_the_link_to_the_inviter(tenant, mailing, settings):
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    made, link = invite(tenant)
    assert link
    assert not made.is_mailed


def test_a_tenant_has_a_bounded_number_of_open_invitations(tenant, monkeypatch):
    monkeypatch.setattr(invitations, "MOST_OPEN", 2)
    for n in range(2):
        invite(tenant, f"p{n}@example.com")
    with pytest.raises(Problem) as refused:
        invite(tenant, "more@example.com")
    assert refused.value.kind == "limit-reached"
    invite(tenant, "p1@example.com")  # replaces its own


def test_rest_shows_the_link_once_and_revokes(tenant):
    operator = Client(headers={"Authorization": f"Bearer {make_key(None, 'operator')}"})
    body = {"tenant": "acme", "email": "ann@example.com", "role": "team"}
    made = operator.post("/api/v1/invitations", body, content_type="application/json").json()
    path = f"/api/v1/invitations/{made['id']}"
    assert made["link"].startswith("http://testserver/invitations/")
    assert "link" not in operator.get(path).json()
    assert operator.delete(path).status_code == 204
    assert Client().get(made["link"]).status_code == 404
    actions = AuditEvent.unscoped.filter(tenant=tenant).values_list("action", flat=True)
    assert {"invitation.make", "invitation.revoke"} <= set(actions)


def test_the_page_invites_and_revokes_with_and_without_htmx(tenant):
    client = Client()
    client.force_login(make_person("root", staff=True))
    path = f"/tenants/{tenant.pk}/invitations"
    form = {"email": "ann@example.com", "role": "viewer"}
    whole = client.post(path, form).content.decode()
    part = client.post(path, form, headers={"HX-Request": "true"}).content.decode()
    assert "<html" in whole
    assert "<html" not in part
    assert "/invitations/" in part
    open_one = invitations.open_of(tenant).get()
    client.post(f"/invitations/{open_one.pk}/revoke")
    assert not invitations.open_of(tenant).exists()
