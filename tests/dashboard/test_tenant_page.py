"""The page of a tenant: who sees and changes what, drafts, refusals that name the field."""

import re

import pytest
from django.test import Client
from django.urls import reverse

from retention.models import RetentionPolicy, RetentionRule
from support.rows import make_everything, make_person
from tenants.audit import SYSTEM
from tenants.keys import find_key
from tenants.models import ApiKey, AuditEvent, Membership, Quota, Tenant
from tenants.services import issue_key, revoke_key

pytestmark = [pytest.mark.integration, pytest.mark.django_db, pytest.mark.usefixtures("hot_tier")]

ACME = "/tenants/acme/"
TABS = ("use", "contexts", "spaces", "nodes", "policy", "keys", "people", "audit", "savings")
GIB = 1 << 30


def text_of(answer):
    return answer.content.decode()


def seen_in(browser, **query):
    """The revision that the first form of the page shows."""
    page = text_of(browser.get(ACME, query))
    return re.search(r'name="seen" value="([^"]+)"', page)[1]


def quota(tenant):
    return Quota.unscoped.get(tenant=tenant)


def send(browser, do, **fields):
    return browser.post(ACME, {"do": do, **fields})


@pytest.mark.parametrize("tab", TABS)
def test_each_tab_answers_empty_and_full_for_all_who_see_the_tenant(people, acme, globex, tab):
    for name in ("operator", "team", "viewer"):
        assert people[name].get(ACME, {"tab": tab}).status_code == 200, name
    make_everything(acme)
    for one in make_everything(globex).values():
        if hasattr(one, "node"):
            one.node = "globex-node"
            one.save()
    for name in ("operator", "team", "viewer"):
        page = people[name].get(ACME, {"tab": tab})
        assert page.status_code == 200
        assert "None" not in re.sub(r"<[^>]*>", "", text_of(page))
        if name != "operator":
            assert "globex" not in text_of(page)
    assert people["stranger"].get(ACME).status_code == 404


def test_another_tenant_does_not_exist_and_is_not_changed(people, globex):
    assert people["team"].get("/tenants/globex/").status_code == 404
    answer = people["team"].post("/tenants/globex/", {"do": "samples", "enabled": "false"})
    assert answer.status_code == 404
    assert Tenant.objects.get(slug="globex").samples_enabled


def test_a_tab_that_is_none_is_not_found_and_the_scope_bar_goes_to_another_tenant(people, globex):
    assert people["operator"].get(ACME, {"tab": "money"}).status_code == 404
    answer = people["operator"].get(ACME, {"tenant": "globex"})
    assert (answer.status_code, answer["Location"]) == (302, "/tenants/globex/")


def test_a_quota_is_typed_saved_and_taken_back(people, acme):
    before = quota(acme).cold_bytes
    operator = people["operator"]
    answer = send(operator, "quota", cold_bytes="2 TiB", seen=seen_in(operator))
    assert answer.status_code == 302
    assert quota(acme).cold_bytes == 2 << 40
    page = text_of(operator.get(answer["Location"]))
    event = re.search(r'name="event" value="(\d+)"', page)[1]
    assert "Quota saved" in page
    assert send(operator, "undo", event=event).status_code == 302
    assert quota(acme).cold_bytes == before


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("-1 GiB", "need 0 or more"),
        ("5", "need a unit"),
        ("much", "need a size such as"),
        ("99999999 TiB", "need less than"),
        ("<script>alert(1)</script>", "need a size such as"),
    ],
)
def test_a_quota_that_is_no_size_names_its_field(people, acme, typed, words):
    before = quota(acme).cold_bytes
    answer = send(people["operator"], "quota", cold_bytes=typed, seen="x")
    assert answer.status_code == 400
    assert f"Cold quota: {words}" in text_of(answer)
    assert "<script>alert" not in text_of(answer)
    assert quota(acme).cold_bytes == before


def test_a_quota_beyond_the_memory_says_what_would_fit(people, acme, monkeypatch):
    monkeypatch.setattr("storage.hot.capacity_bytes", lambda: 4 * GIB)
    operator = people["operator"]
    form = {"hot_bytes": "1 TiB", "seen": seen_in(operator)}
    answer = send(operator, "quota", **form)
    page = text_of(answer).replace("\N{NO-BREAK SPACE}", " ")
    assert answer.status_code == 409
    assert "Hot quota: 1 TiB does not fit. At most 3 GiB would" in page
    assert 'name="overcommit"' in page
    assert quota(acme).hot_bytes == GIB
    assert send(operator, "quota", **form, overcommit="1").status_code == 302
    assert quota(acme).hot_bytes == 1 << 40


def test_the_slower_of_two_people_is_told(people, acme):
    operator, seen = people["operator"], seen_in(people["operator"])
    assert send(operator, "quota", cold_bytes="2 TiB", seen=seen).status_code == 302
    late = send(operator, "quota", cold_bytes="3 TiB", seen=seen)
    assert late.status_code == 412
    assert "Somebody changed this since you opened the page" in text_of(late)
    assert quota(acme).cold_bytes == 2 << 40
    seen = seen_in(operator, tab="policy", priority="6")
    assert send(operator, "policy", priority="6", seen=seen).status_code == 302
    assert send(operator, "policy", priority="7", seen=seen).status_code == 412


def test_a_draft_is_tried_before_it_is_saved(people, acme):
    operator = people["operator"]
    page = text_of(operator.get(ACME, {"tab": "policy", "cold_ttl_s": "14 d"}))
    assert "Dry run, nothing saved" in page
    assert "was never" in page
    assert "Save: nothing leaves now" in page
    assert RetentionPolicy.unscoped.get(tenant=acme).cold_ttl_s is None
    form = {"cold_ttl_s": "14 d", "seen": re.search(r'name="seen" value="([^"]+)"', page)[1]}
    assert send(operator, "policy", **form).status_code == 302
    assert RetentionPolicy.unscoped.get(tenant=acme).cold_ttl_s == 14 * 86_400


def test_only_operators_make_the_index_be_walked(people, monkeypatch):
    monkeypatch.setattr("dashboard.pages.tenant.view.preview", None)
    asked = {"tab": "policy", "cold_ttl_s": "14 d"}
    assert "Nothing is about to change." in text_of(people["team"].get(ACME, asked))


@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("cold_ttl_s", "soon", "need a time such as"),
        ("priority", "12", "less than or equal to 9"),
        ("flush_mode", "after", "say how long"),
        ("eviction", "<b>x</b>", "need one of"),
    ],
)
def test_a_draft_that_cannot_be_says_why(people, acme, field, typed, words):
    page = text_of(people["operator"].get(ACME, {"tab": "policy", field: typed}))
    assert "Not possible" in page
    assert words in page
    assert "<b>x</b>" not in page


def test_rules_are_tried_added_and_removed(people, acme):
    operator = people["operator"]
    asked = {"tab": "policy", "r_context": "repo-*", "r_cold_ttl_s": "90 d"}
    assert "Dry run, nothing saved" in text_of(operator.get(ACME, asked))
    assert "name at least one field" in text_of(
        operator.get(ACME, {"tab": "policy", "r_label": "x"})
    )
    assert send(operator, "rule", **asked).status_code == 302
    rule = RetentionRule.unscoped.get(tenant=acme)
    assert (rule.context, rule.overrides) == ("repo-*", {"cold_ttl_s": 90 * 86_400})
    page = text_of(operator.get(ACME, {"tab": "policy", "without": rule.pk}))
    assert f'name="rule" value="{rule.pk}"' in page
    assert send(operator, "rule-remove", rule=rule.pk).status_code == 302
    assert not RetentionRule.unscoped.exists()


OPERATORS = (
    *("quota", "policy", "rule", "rule-remove", "undo", "limits", "active", "remove", "let-in"),
    *("member-add", "member-change", "member-remove"),
)


@pytest.mark.parametrize("do", [*OPERATORS, "drop", ""])
def test_a_member_finds_no_form_of_an_operator(people, acme, do):
    before = AuditEvent.unscoped.count()
    for name in ("team", "viewer", "stranger"):
        answer = send(people[name], do, cold_bytes="1 TiB", is_active="false", confirm="acme")
        assert answer.status_code == 404, name
    assert AuditEvent.unscoped.count() == before
    page = text_of(people["team"].get(ACME, {"tab": "policy"}))
    assert 'value="policy"' not in page.replace('name="tab" value="policy"', "")
    assert "Operators change the policy" in page


def test_a_member_switches_samples_and_a_viewer_does_not(people, acme):
    assert send(people["viewer"], "samples", enabled="false").status_code == 404
    assert send(people["team"], "samples", enabled="false").status_code == 302
    acme.refresh_from_db()
    assert not acme.samples_enabled


def test_limits_and_state_are_changed_and_the_tenant_goes_only_by_its_name(people, acme):
    operator = people["operator"]
    page = text_of(operator.get(ACME, {"tab": "policy"}))
    seen = re.findall(r'name="seen" value="([^"]+)"', page)[-1]
    form = {"name": "Acme 2", "node_limit": "3", "context_limit": "", "space_limit": "7"}
    assert send(operator, "limits", **form, seen=seen).status_code == 302
    acme.refresh_from_db()
    assert (acme.name, acme.node_limit, quota(acme).space_limit) == ("Acme 2", 3, 7)
    assert send(operator, "limits", **form | {"node_limit": "-1"}, seen=seen).status_code == 400
    assert send(operator, "active", is_active="false").status_code == 302
    acme.refresh_from_db()
    assert not acme.is_active
    form = {"do": "active", "is_active": "true"}
    answer = operator.post(f"{ACME}?tab=policy", form)  # a test's server is small
    assert (answer.status_code, 'name="overcommit"' in text_of(answer)) == (409, True)
    assert send(operator, "active", is_active="true", overcommit="1").status_code == 302
    assert send(operator, "remove", confirm="globex").status_code == 400
    assert send(operator, "remove", confirm="acme").status_code == 302
    acme.refresh_from_db()
    assert acme.is_leaving


def test_people_get_roles_and_lose_them(people, acme):
    operator, carol = people["operator"], make_person("carol")
    assert send(operator, "member-add", user="nobody", role="team").status_code == 400
    assert send(operator, "member-add", user="carol", role="viewer").status_code == 302
    member = Membership.objects.get(user=carol)
    change = {"member": member.pk, "role": "team"}
    assert send(operator, "member-change", **change, seen="viewer").status_code == 302
    assert send(operator, "member-change", **change, seen="viewer").status_code == 412
    asked = text_of(operator.get(ACME, {"tab": "people", "leaving": member.pk}))
    assert "Remove carol?" in asked
    assert send(operator, "member-remove", member=member.pk).status_code == 302
    assert not Membership.objects.filter(user=carol).exists()


def test_names_are_text_and_no_markup(people, acme):
    evil = '<img src=x onerror="alert(1)">'
    acme.name = evil
    acme.save()
    make_person(f"m{evil}", acme="team")
    issue_key(tenant=acme, role="team", name=evil)
    for path in (*(f"{ACME}?tab={tab}" for tab in TABS), "/tenants/", "/keys/", "/policies/"):
        assert "<img" not in text_of(people["operator"].get(path)), path


class TestNewTenant:
    FORM = {
        **{"slug": "team-07", "hot_bytes": "64 MiB", "cold_bytes": "1 TiB"},
        **{"preset": "chat", "key": "pool a", "overcommit": "1"},
    }

    def test_quota_policy_and_key_are_made_at_once(self, people):
        answer = people["operator"].post("/new-tenant/", self.FORM)
        page = text_of(answer)
        assert answer.status_code == 200
        secret = re.search(r"data-secret>([^<]+)<", page)[1]
        key = find_key(secret)
        assert (key.role, key.name, key.tenant.slug) == ("node", "pool a", "team-07")
        assert (quota(key.tenant).hot_bytes, quota(key.tenant).cold_bytes) == (64 << 20, 1 << 40)
        assert RetentionPolicy.unscoped.get(tenant=key.tenant).hot_idle_s == 7_200
        assert f"export NEVE_API_KEY={secret}" in page
        assert "waiting for the first heartbeat" in page

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"slug": "Team 7"}, "lower-case letters"),
            ({"slug": "acme"}, "already exists"),
            ({"hot_bytes": "-1 GiB"}, "Hot quota: need 0 or more"),
            ({"cold_bytes": "1 floppy"}, "Cold quota: need a size"),
            ({"preset": "best"}, "Choose a policy"),
        ],
    )
    def test_a_wrong_form_makes_nothing(self, people, wrong, words):
        answer = people["operator"].post("/new-tenant/", self.FORM | wrong)
        assert answer.status_code == 400
        assert words in text_of(answer)
        assert not Tenant.objects.filter(slug="team-07").exists()
        assert not ApiKey.unscoped.exists()

    def test_what_does_not_fit_makes_nothing_and_says_what_would(self, people, monkeypatch):
        monkeypatch.setattr("storage.hot.capacity_bytes", lambda: 4 * GIB)
        form = {name: value for name, value in self.FORM.items() if name != "overcommit"}
        answer = people["operator"].post("/new-tenant/", form | {"hot_bytes": "1 TiB"})
        page = text_of(answer).replace("\N{NO-BREAK SPACE}", " ")
        assert answer.status_code == 400
        assert "At most 2 GiB would" in page  # two tenants were promised 1 GiB each
        assert not Tenant.objects.filter(slug="team-07").exists()

    def test_a_form_sent_twice_makes_one(self, people):
        form = self.FORM | {"once": "token"}
        assert "data-secret" in text_of(people["operator"].post("/new-tenant/", form))
        assert "was sent before" in text_of(people["operator"].post("/new-tenant/", form))
        assert ApiKey.unscoped.count() == 1

    def test_only_operators_have_it(self, people):
        for name in ("team", "viewer", "stranger"):
            assert people[name].get("/new-tenant/").status_code == 404
            assert people[name].post("/new-tenant/", self.FORM).status_code == 404


class TestKeys:
    def test_a_member_makes_team_keys_only(self, people, acme):
        form = {"do": "key", "name": "ci", "role": "team", "scopes": "read", "ends": "90 d"}
        answer = people["team"].post(f"{ACME}?tab=keys", form)
        key = find_key(re.search(r"data-secret>([^<]+)<", text_of(answer))[1])
        assert (key.role, key.scopes) == ("team", ["read"])
        assert key.expires_at is not None
        for role in ("node", "operator"):
            answer = people["team"].post(f"{ACME}?tab=keys", form | {"role": role, "scopes": ""})
            assert answer.status_code == 404
        assert people["viewer"].post(f"{ACME}?tab=keys", form).status_code == 404
        assert ApiKey.unscoped.count() == 1

    def test_a_key_is_rotated_with_an_overlap(self, people, acme):
        key, secret = issue_key(tenant=acme, role="node", name="pool")
        path = reverse("dashboard:key-rotate", args=[key.pk])
        assert "works on for" in text_of(people["operator"].get(path))
        assert people["team"].get(path).status_code == 404
        wrong = people["operator"].post(path, {"overlap": "a while"})
        assert wrong.status_code == 400
        answer = people["operator"].post(path, {"overlap": "2 h"})
        made = find_key(re.search(r"data-secret>([^<]+)<", text_of(answer))[1])
        assert (made.name, made.rotated_from) == ("pool", key)
        assert find_key(secret).expires_at is not None

    def test_a_revoked_key_is_not_rotated(self, people, acme):
        key, _ = issue_key(tenant=acme, role="node", name="pool")
        revoke_key(key=key, actor=SYSTEM)
        path = reverse("dashboard:key-rotate", args=[key.pk])
        answer = people["operator"].post(path, {"overlap": "2 h"})
        assert answer.status_code == 400
        assert "This key has ended" in text_of(answer)
        assert ApiKey.unscoped.count() == 1

    def test_the_page_that_waits_turns_live(self, people, acme):
        rows = make_everything(acme)
        key, _ = issue_key(tenant=acme, role="node", name="pool")
        path = reverse("dashboard:key-first-use", args=[key.pk])
        assert "waiting for the first heartbeat" in text_of(people["operator"].get(path))
        session = rows["node"]
        session.key, session.last_seq = key, 1
        session.save()
        page = text_of(people["operator"].get(path))
        assert "● live" in page
        assert "hx-trigger" not in page
        assert people["stranger"].get(path).status_code == 404

    def test_revoking_names_the_nodes_that_stop(self, people, acme):
        rows = make_everything(acme)
        key, _ = issue_key(tenant=acme, role="node", name="pool")
        rows["node"].key = key
        rows["node"].save()
        path = reverse("dashboard:key-revoke", args=[key.pk])
        assert "1 node loses the cache at once" in text_of(people["operator"].get(path))
        answer = people["operator"].post(f"{path}?back=tenant")
        assert answer["Location"].startswith(f"{ACME}?")
        key.refresh_from_db()
        assert key.revoked_at is not None


def test_policies_stand_side_by_side(people, acme, globex):
    page = text_of(people["operator"].get("/policies/"))
    assert "acme" in page
    assert "Keep until full" in page
    assert "globex" not in text_of(people["team"].get("/policies/"))
    link = "/tenants/acme/?tab=policy&amp;edit=cold_ttl_s"
    assert link in page
    assert "autofocus" in text_of(people["operator"].get(link.replace("&amp;", "&")))


def test_the_list_of_tenants_narrows_sorts_and_saves(people, acme, globex):
    operator = people["operator"]
    assert (
        "globex"
        not in text_of(operator.get("/tenants/", {"q": "acm"}))
        .partition("<main")[2]
        .partition("data-list")[2]
    )
    lines = b"".join(operator.get("/tenants/", {"format": "csv"}).streaming_content).decode()
    assert lines.splitlines()[0].startswith("slug,")
    assert [line.split(",")[0] for line in lines.splitlines()[1:]] == ["acme", "globex"]
    for form in ({}, {"format": "csv"}):
        assert operator.get("/tenants/", {"sort": "-money", **form}).status_code == 404


def test_actions_need_the_csrf_token(people, acme):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(Membership.objects.filter(tenant=acme).first().user)
    assert strict.post(ACME, {"do": "samples"}).status_code == 403


def test_parameters_that_are_no_tenant_or_number_are_not_found(people, acme, globex):
    team = people["team"]
    assert team.get(ACME, {"tenant": "globex"}).status_code == 404
    assert team.get(ACME, {"tenant": "no slug"}).status_code == 404
    assert team.get(ACME, {"tab": "people", "leaving": "9" * 5000}).status_code == 200
