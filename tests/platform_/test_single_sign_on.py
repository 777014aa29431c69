"""Single sign-on with a real provider (OpenID Connect): whom it lets in, and whom it must not."""

from contextlib import suppress
from dataclasses import replace
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from allauth.account.models import EmailAddress
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from oidc_provider_mock import run_server_in_thread

from controlplane import env
from support.rows import make_person, make_tenant
from tenants import invitations, second_factor
from tenants.audit import SYSTEM
from tenants.grants import grants
from tenants.models import AuditEvent, Membership

pytestmark = [
    *(pytest.mark.integration, pytest.mark.django_db),
    pytest.mark.filterwarnings("ignore:No directory at"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def provider():
    with run_server_in_thread(require_nonce=True) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture
def sso(provider, settings):
    """sso(subject, client=…, **claims): signs in as a person of the provider; the last answer."""
    settings.ENV = replace(settings.ENV, oidc_url=provider)
    [app] = settings.SOCIALACCOUNT_PROVIDERS["neve_oidc"]["APPS"]
    app = {**app, "client_id": "neve", "secret": "s", "settings": {"server_url": provider}}
    settings.SOCIALACCOUNT_PROVIDERS = {"neve_oidc": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}}
    make_tenant("acme")

    def sso(subject, client=None, path="/login/sso/", **claims):
        client = client or Client()
        away = client.get(path)["Location"]
        return client.get(confirmed(provider, away, subject, **claims))

    return sso


def confirmed(provider, away, subject, **claims):
    """What the browser does at the provider; the address that it comes back to."""
    httpx.put(f"{provider}/users/{subject}", json=claims).raise_for_status()
    back = httpx.post(away, data={"sub": subject})
    url = urlsplit(back.headers["Location"])
    return f"{url.path}?{url.query}"


def roles():
    return dict(Membership.objects.values_list("user__username", "role"))


def invite(role="viewer", email="ann@example.com"):
    from tenants.models import Tenant

    tenant = Tenant.objects.get()
    return invitations.invite(tenant=tenant, email=email, role=role, link=str, actor=SYSTEM)


def known(name="ann", email="ann@example.com", **more):
    person = make_person(name, **more)
    person.email = email
    person.save()
    return person


PROVEN = {"email": "ann@example.com", "email_verified": True}


def is_in(client):
    return client.get("/").status_code == 200


def words(client):
    return client.get("/login/").content.decode()


def test_strangers_get_no_account(sso):
    client = Client()
    assert sso("eve", client, **PROVEN)["Location"] == "/login/"
    assert "no account here" in words(client)
    assert not get_user_model().objects.exists()


def test_an_invited_address_gets_an_account_and_the_role_of_the_invitation(sso):
    made, _ = invite()
    client = Client()
    sso("ann-1", client, preferred_username="ann", **PROVEN)
    assert is_in(client)
    assert roles() == {"ann": "viewer"}
    made.refresh_from_db()
    assert made.accepted_at
    assert not get_user_model().objects.get().has_usable_password()
    again = Client()
    sso("ann-1", again, email="moved@example.com", email_verified=True)  # known by its subject
    assert is_in(again)
    assert get_user_model().objects.count() == 1


@pytest.mark.parametrize("claims", [{}, {"email_verified": False}, {"email_verified": "no"}])
def test_an_address_that_the_provider_did_not_check_opens_nothing(sso, claims):
    invite()
    known(acme="team")
    client = Client()
    sso("eve", client, email="ann@example.com", **claims)
    assert not is_in(client)
    assert not SocialAccount.objects.exists()


def test_an_account_whose_address_an_operator_wrote_is_matched(sso):
    person, client = known(acme="team"), Client()
    sso("ann-1", client, email="Ann@Example.com", email_verified=True)
    assert client.get("/").wsgi_request.user == person
    assert AuditEvent.unscoped.get(action="identity.link").after["by"] == "verified address"


def test_an_address_that_nobody_proved_is_not_matched(sso):
    """Whoever got hold of a copied link chose the password of that account."""
    person, client = known(acme="team"), Client()
    EmailAddress.objects.create(user=person, email=person.email, verified=False)
    sso("ann-1", client, **PROVEN)
    assert not is_in(client)
    EmailAddress.objects.update(verified=True)
    sso("ann-1", client, **PROVEN)
    assert is_in(client)


def test_a_second_identity_of_the_address_does_not_become_the_same_person(sso):
    known(acme="team")
    first, second = Client(), Client()
    sso("ann-1", first, **PROVEN)
    sso("ann-2", second, **PROVEN)
    assert is_in(first)
    assert not is_in(second)


def test_two_accounts_of_an_address_match_nobody(sso):
    known("ann", acme="team"), known("ann2", staff=True)
    client = Client()
    sso("ann-1", client, **PROVEN)
    assert not is_in(client)


def test_switched_off_accounts_stay_out(sso):
    person, client = known(acme="team"), Client()
    sso("ann-1", client, **PROVEN)
    person.is_active = False
    person.save()
    again = Client()
    sso("ann-1", again, **PROVEN)
    assert not is_in(again)


def test_groups_give_and_take_roles(sso, settings):
    text = "admins=operator, blue=acme:team, all=acme:viewer"
    settings.ENV = replace(settings.ENV, oidc_roles=grants(text))
    client = Client()
    for groups, role, is_operator in (
        (["all", "blue"], {"ann": "team"}, False),
        (["all"], {"ann": "viewer"}, False),
        (["admins"], {}, True),
        ([], {}, False),
    ):
        sso("ann-1", client, preferred_username="ann", groups=groups)
        assert roles() == role
        assert get_user_model().objects.get().is_staff == is_operator
    stranger = Client()
    sso("eve", stranger, groups=["other"])
    assert not is_in(stranger)


def test_groups_take_nothing_that_the_setting_does_not_name(sso, settings):
    make_tenant("globex")
    known(acme="team", globex="team")
    settings.ENV = replace(settings.ENV, oidc_roles=grants("blue=globex:viewer"))
    sso("ann-1", groups=[], **PROVEN)
    rows = Membership.objects.values_list("tenant__slug", "role")
    assert list(rows) == [("acme", "team")]


def test_a_superuser_stays_an_operator_whatever_the_groups(sso, settings):
    person = known(staff=True)
    person.is_superuser = True
    person.save()
    settings.ENV = replace(settings.ENV, oidc_roles=grants("admins=operator"))
    sso("ann-1", groups=[], **PROVEN)
    person.refresh_from_db()
    assert person.is_staff


def test_an_answer_that_another_browser_asked_for_is_refused(sso, provider):
    """State: a link with a thief's code signs nobody in as the thief."""
    known(acme="team")
    thief, victim = Client(), Client()
    away = thief.get("/login/sso/")["Location"]
    back = confirmed(provider, away, "ann-1", **PROVEN)
    victim.get("/login/sso/")
    assert victim.get(back)["Location"] == "/login/"
    assert "did not confirm" in words(victim)
    assert not is_in(victim)
    assert thief.get(back)["Location"] == "/"
    assert thief.get(back)["Location"] == "/login/"  # and works once


def test_a_code_of_another_sign_in_is_refused(sso, provider):
    """Nonce: the right state with a stolen code."""
    known(acme="team")
    victim, thief = Client(), Client()
    stolen = confirmed(provider, victim.get("/login/sso/")["Location"], "ann-1", **PROVEN)
    own = thief.get("/login/sso/")["Location"]
    query = {"state": parse_qs(urlsplit(own).query)["state"][0]}
    query["code"] = parse_qs(urlsplit(stolen).query)["code"][0]
    thief.get(f"/login/sso/callback/?{urlencode(query)}")
    assert not is_in(thief)


def test_what_is_asked_of_the_provider_is_not_the_visitors_choice(sso):
    query = parse_qs(
        urlsplit(
            Client().get("/login/sso/?scope=admin&auth_params=prompt%3Dnone&process=connect")[
                "Location"
            ]
        ).query
    )
    assert set(query["scope"][0].split()) == {"openid", "profile", "email"}
    assert "prompt" not in query
    assert query["code_challenge_method"] == ["S256"]
    assert query["nonce"]
    assert query["redirect_uri"] == ["http://testserver/login/sso/callback/"]


def test_other_sites_begin_no_sign_in_and_lead_nobody_away(sso):
    client = Client(headers={"Sec-Fetch-Site": "cross-site"})
    assert client.get("/login/sso/")["Location"] == "/login/"
    person = known(acme="team")
    for wanted, to in (("https://evil.example/", "/"), ("/jobs/", "/jobs/")):
        client = Client()
        query = urlencode({"next": wanted})
        answer = sso("ann-1", client, path=f"/login/sso/?{query}", **PROVEN)
        assert answer["Location"] == to
    assert person.is_active


def test_linking_needs_the_password_and_one_confirmation_links_once(sso):
    person, client = make_person("ann", acme="team"), Client()
    client.force_login(person)
    assert client.get("/login/sso/?link=1")["Location"] == "/account/"
    assert client.post("/account/link", {"present": "wrong"}).status_code == 400
    assert client.get("/login/sso/?link=1")["Location"] == "/account/"
    assert client.post("/account/link", {"present": "pw"}).status_code == 200
    sso("x-1", client, path="/login/sso/?link=1&next=/account/", email="x@example.com")
    identity = SocialAccount.objects.get(user=person)
    assert "x@example.com" in client.get("/account/").content.decode()
    assert client.get("/login/sso/?link=1")["Location"] == "/account/"
    other = Client()
    sso("x-1", other)
    assert other.get("/").wsgi_request.user == person
    assert client.post(f"/account/unlink/{identity.pk}", {"present": "pw"}).status_code == 302
    assert not SocialAccount.objects.exists()


def test_an_identity_of_somebody_else_is_not_linked(sso):
    known(acme="team")
    sso("ann-1", **PROVEN)
    eve, client = make_person("eve", acme="viewer"), Client()
    client.force_login(eve)
    client.post("/account/link", {"present": "pw"})
    sso("ann-1", client, path="/login/sso/?link=1", **PROVEN)
    assert SocialAccount.objects.get().user.username == "ann"


def test_the_second_factor_is_asked_after_the_provider_too(sso, settings):
    person = known(acme="team")
    second_factor.Authenticator.objects.create(
        user=person, type="totp", data={"secret": second_factor.Sealed().encrypt("A" * 32)}
    )
    client = Client()
    assert sso("ann-1", client, **PROVEN)["Location"] == "/login/code/"
    assert not is_in(client)
    settings.ENV = replace(settings.ENV, oidc_second_factor="provider")
    assert sso("ann-1", client, **PROVEN)["Location"] == "/"
    assert is_in(client)


def test_without_passwords_only_the_provider_opens(sso, settings):
    known(acme="team")
    settings.ENV = replace(settings.ENV, password_login=False)
    client = Client()
    page = words(client)
    assert "Password" not in page
    assert "single sign-on" in page
    client.post("/login/", {"username": "ann", "password": "pw"})
    assert not is_in(client)
    sso("ann-1", client, **PROVEN)
    assert is_in(client)


def test_a_provider_that_is_down_is_said(settings):
    settings.ENV = replace(settings.ENV, oidc_url="http://127.0.0.1:9")
    [app] = settings.SOCIALACCOUNT_PROVIDERS["neve_oidc"]["APPS"]
    app = {**app, "settings": {"server_url": "http://127.0.0.1:9"}}
    settings.SOCIALACCOUNT_PROVIDERS = {"neve_oidc": {"APPS": [app]}}
    client = Client()
    assert client.get("/login/sso/")["Location"] == "/login/"
    assert "does not answer" in words(client)


def test_without_a_provider_there_is_no_such_page(client):
    assert client.get("/login/sso/").status_code == 404
    assert client.get("/login/sso/callback/?code=x&state=y").status_code == 404


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("NEVE_OIDC_URL", "http://sso.example.com", "https"),
        ("NEVE_OIDC_URL", "https://sso.example.com", "NEVE_OIDC_CLIENT_ID"),
        ("NEVE_OIDC_ROLES", "blue=acme:owner", "group=tenant:viewer"),
        ("NEVE_PASSWORD_LOGIN", "off", "NEVE_OIDC_URL"),
        ("NEVE_SECOND_FACTOR", "maybe", "optional or operators or everyone"),
        ("NEVE_MAIL_URL", "ftp://mail", "smtp"),
        ("NEVE_MAIL_URL", "smtp://mail", "NEVE_MAIL_FROM"),
    ],
)
def test_a_wrong_setting_stops_the_boot_and_says_the_fix(monkeypatch, name, value, says):
    with suppress(KeyError):
        monkeypatch.delenv("NEVE_MAIL_FROM")
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=says):
        env.read()
