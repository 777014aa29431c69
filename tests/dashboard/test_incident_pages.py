"""Incidents on the overview, in their list and on their own page; actions by who may."""

import csv
import html
import io
import json
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from catalog.models import Slice
from catalog.usage import record_gauges
from dashboard import probes
from dashboard.pages.overview.selector import MOST_FOLDED
from incidents.models import Incident, MailWish
from planning import whatif
from support.rows import make_incident, make_session, make_space
from tenants.audit import SYSTEM
from tenants.models import AuditEvent
from tenants.services import set_quota

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

LEVER = {
    "setting": "cold_quota",
    "name": "cold quota",
    "now": "2 TiB",
    "to": "4 TiB",
    "used": 1.0,
    "change": {"cold": "x2"},
    "gain": 0.45,
    "error": 0.02,
}


@pytest.fixture
def incident(acme, hot_tier):
    return make_incident(
        acme,
        cause="unflushed",
        before=0.81,
        value=0.38,
        words="hit rate −43 points",
        facts={"refused_blocks": 18_412, "lost_blocks": 11_906, "misses": {"unflushed": 0.4}},
        slice={"split": "node", "key": "gpu-1", "name": "gpu-1", "before": 0.88, "now": 0.31},
        levers=[LEVER],
        lost_tokens=1_000_000,
    )


def test_the_overview_says_what_why_where_and_which_lever(people, incident):
    text = people["operator"].get("/").content.decode()
    assert "acme: hit rate −43 points since" in text
    assert "81 → 38 %" in text
    assert "Refused by cold quota" in text
    assert "11,906 blocks lost as they left hot" in text
    assert "node gpu-1" in text
    assert "<b>Cold quota 4 TiB</b> (now 2 TiB, 100" in text
    assert "+\N{NO-BREAK SPACE}45\N{NO-BREAK SPACE}pt" in text
    assert "/what-if/?tenant=acme&amp;change=cold%3Dx2" in text
    assert "1 thing needs you" in text


def test_others_are_a_line_each(people, incident, globex):
    make_incident(globex, "breaker", words="breaker open on 6 nodes", cause="breaker")
    text = people["operator"].get("/").content.decode()
    assert "2 things need you" in text
    assert text.index("acme: hit rate") < text.index("globex: breaker open on 6 nodes")


@pytest.mark.parametrize(("who", "other"), [("team", "operator"), ("operator", "viewer")])
def test_a_mute_hides_an_incident_from_ones_own_side_only(people, incident, who, other):
    path = f"/incidents/{incident.pk}/do"
    assert people[who].post(path, {"do": "mute", "for": "1h"}).status_code == 302
    assert "1 muted" in people[who].get("/").content.decode()
    assert "▲ muted" in people[who].get("/incidents/").content.decode()
    assert "Muted until" in people[who].get(f"/incidents/{incident.pk}/").content.decode()
    assert "1 thing needs you" in people[other].get("/").content.decode()
    assert "▲ muted" not in people[other].get("/incidents/").content.decode()
    page = people[other].get(f"/incidents/{incident.pk}/").content.decode()
    assert "Muted until" not in page
    side = "the tenant&#x27;s people" if who == "team" else "operators"
    assert f"muted for {side} until" in page
    assert people[who].post(path, {"do": "unmute"}).status_code == 302
    assert "1 thing needs you" in people[who].get("/").content.decode()


def test_a_member_is_not_told_whether_an_operator_has_a_name(people, incident):
    path = f"/incidents/{incident.pk}/do"
    answers = [
        people["team"].post(path, {"do": "owner", "owner": name}) for name in ("operator", "nobody")
    ]
    told = [re.search(r'role="alert">(.*?)</p>', each.content.decode())[1] for each in answers]
    assert [each.status_code for each in answers] == [400, 400]
    assert told[0].replace("operator", "nobody") == told[1]
    as_operator = people["operator"].post(path, {"do": "owner", "owner": "operator"})
    assert as_operator.status_code == 302


def test_of_more_than_two_others_all_but_one_are_folded(people, incident, globex):
    for kind in ("breaker", "silent_node", "hit_rate"):
        make_incident(globex, kind, words=f"{kind} of globex")
    text = people["operator"].get("/").content.decode()
    lines, folded = text.split('<details class="more-lines">')
    assert lines.count('<li data-incident="') == 1
    assert folded.count('<li data-incident="') == 2
    assert "<summary>2 more</summary>" in folded


def test_charts_of_the_overview_carry_the_letters_of_the_explorer(people, incident, acme):
    set_quota(tenant=acme, actor=SYSTEM, cold_bytes=10 << 40, overcommit=True)
    text = people["team"].get("/").content.decode()
    chart = json.loads(re.search(r'id="chart-data"[^>]*>(.*?)</script>', text)[1])
    marks = {mark["letter"]: mark["words"] for mark in chart["marks"]}
    assert marks["A"] == "acme: hit rate −43 points"
    assert marks["Q"].startswith("acme: quota changed: cold")
    assert "marks" in people["stranger"].get("/").content.decode()
    assert "quota changed" not in people["stranger"].get("/").content.decode()


def test_a_team_sees_and_acknowledges_its_own_and_a_viewer_only_looks(people, incident, globex):
    other = make_incident(globex, words="hit rate −20 points")
    text = people["team"].get("/incidents/").content.decode()
    assert "hit rate −43 points" in text
    assert "hit rate −20 points" not in text
    assert people["team"].get(f"/incidents/{other.pk}/").status_code == 404
    assert (
        people["team"].post(f"/incidents/{other.pk}/do", {"do": "acknowledge"}).status_code == 404
    )
    path = f"/incidents/{incident.pk}/do"
    assert people["viewer"].post(path, {"do": "acknowledge"}).status_code == 404
    assert people["team"].post(path, {"do": "acknowledge"}).status_code == 302
    incident.refresh_from_db()
    assert (incident.acknowledged_by, incident.owner) == ("team", "team")
    assert AuditEvent.unscoped.get(action="incident.acknowledge").actor_name == "team"
    page = people["viewer"].get(f"/incidents/{incident.pk}/").content.decode()
    assert "Acknowledged by team" in page
    assert "acknowledged" in page[page.index("Time line") :]


def test_an_owner_is_somebody_who_sees_it(people, incident):
    path = f"/incidents/{incident.pk}/do"
    answer = people["team"].post(path, {"do": "owner", "owner": "stranger"})
    assert answer.status_code == 400
    assert "nobody named" in answer.content.decode()
    assert people["team"].post(path, {"do": "owner", "owner": "viewer"}).status_code == 302
    incident.refresh_from_db()
    assert incident.owner == "viewer"


def test_what_is_over_says_so_and_offers_no_acknowledgement(people, incident):
    Incident.unscoped.update(ended_at=timezone.now())
    page = people["team"].get(f"/incidents/{incident.pk}/").content.decode()
    assert "Over" in page
    assert "Acknowledge<" not in page
    assert "Healthy" in people["team"].get("/").content.decode()


def test_operators_set_rules_of_all_and_of_one_tenant(people, acme, hot_tier):
    rule = {"threshold": "30", "for_s": "60", "is_on": "on"}
    assert people["team"].post("/incidents/rules/hit_rate", rule).status_code == 404
    assert people["operator"].post("/incidents/rules/hit_rate?tenant=acme", rule).status_code == 302
    page = people["team"].get("/incidents/?tenant=acme").content.decode()
    assert "30 points" in page
    changed = AuditEvent.unscoped.get(action="alert_rule.change")
    assert (changed.before["threshold"], changed.after["threshold"]) == (15, 30)
    assert "15 points" in people["team"].get("/incidents/").content.decode()
    reset = {"reset": "1"}
    assert (
        people["operator"].post("/incidents/rules/hit_rate?tenant=acme", reset).status_code == 302
    )
    assert "30 points" not in people["team"].get("/incidents/?tenant=acme").content.decode()
    wrong = {**rule, "threshold": "3000"}
    answer = people["operator"].post("/incidents/rules/hit_rate", wrong)
    assert (answer.status_code, "1 to 100 points" in answer.content.decode()) == (400, True)


def test_people_switch_mail_on_and_off_for_themselves(people, hot_tier):
    assert people["viewer"].post("/incidents/mail", {"wants": "1"}).status_code == 302
    assert [wish.user.username for wish in MailWish.objects.all()] == ["viewer"]
    assert people["viewer"].post("/incidents/mail", {"wants": "0"}).status_code == 302
    assert not MailWish.objects.exists()


def test_the_list_is_saved_as_csv(people, incident):
    answer = people["team"].get("/incidents/?format=csv")
    assert answer.status_code == 200
    assert "hit rate −43 points" in b"".join(answer.streaming_content).decode()


def test_a_levers_link_fills_the_form_of_what_if(people, acme, hot_tier):
    today = whatif.today_of(acme.pk, block_bytes=1)
    gib = today.hot.capacity_bytes / 2**30
    page = people["operator"].get("/what-if/?tenant=acme&change=hot%3Dx2").content.decode()
    field = page[page.index('name="hot"') :][:200]
    assert f'value="{2 * gib:g}"' in field
    assert people["operator"].get("/what-if/?tenant=acme&change=hat%3Dx2").status_code == 200


def test_misses_have_levers_with_present_values(people, acme, hot_tier, report):
    make_space(acme)
    now_s = timezone.now().timestamp()
    report(acme, now_s - 20, requested_blocks=10, requested_tokens=160, misses={"unflushed": 10})
    record_gauges(tenant_id=acme.pk, at=timezone.now(), gauges={"hot_used_bytes": 1})
    page = people["team"].get("/?tenant=acme").content.decode()
    assert "refused by cold quota" in page
    assert "cold quota " in page
    assert "change=cold%3Dx2" in page


def test_names_of_operators_are_offered_to_operators_only(people, incident):
    names = {
        who: set(re.findall(r'<option value="([^"]+)"></option>', page.content.decode()))
        for who in ("operator", "team")
        if (page := people[who].get(f"/incidents/{incident.pk}/"))
    }
    operators = set(User.objects.filter(is_staff=True).values_list("username", flat=True))
    members = set(
        User.objects.filter(memberships__tenant=incident.tenant).values_list("username", flat=True)
    )
    assert names == {"operator": operators | members, "team": members}
    assert operators
    assert members


def test_hundreds_of_silent_nodes_do_not_make_a_page_of_lines(people, acme):
    space = make_space(acme)
    for number in range(40):
        long_ago = timezone.now() - timedelta(minutes=30)
        make_session(space, node=f"gpu-{number:02}", last_heartbeat_at=long_ago)
    page = people["operator"].get("/").content.decode()
    assert "40 things need you" in page
    assert f"The first {MOST_FOLDED}" in page
    assert page.count("silent for 30 min") <= MOST_FOLDED + 10


def test_nothing_is_called_healthy_before_the_servers_were_asked(people, acme, monkeypatch):
    monkeypatch.setattr(probes.COLD, "read", probes.Answer)
    page = people["operator"].get("/").content.decode()
    assert "Asking the servers" in page
    assert "Healthy" not in page


def put(tenant, space, ts, hits):
    for kind, where in (("tenant", {}), ("place", {"space_number": space.pk, "name": "gpu-1"})):
        Slice.unscoped.create(
            tenant=tenant,
            kind=kind,
            resolution_s=60,
            bucket_ts=int(ts) // 60 * 60,
            prompt_tokens=10_000,
            hit_tokens=hits,
            **where,
        )


def test_the_worst_slice_leads_to_a_window_that_shows_the_fall(people, acme, hot_tier):
    space, now = make_space(acme), timezone.now()
    for minutes in range(40):
        at = now - timedelta(minutes=minutes)
        put(acme, space, at.timestamp(), 3_000 if minutes < 10 else 8_000)
    since = now - timedelta(minutes=9)
    part = {"split": "node", "key": "gpu-1", "name": "gpu-1"}
    incident = make_incident(acme, since=since, slice=part)

    def explored():
        page = people["team"].get(f"/incidents/{incident.pk}/").content.decode()
        url = html.unescape(re.search(r'href="([^"]+)">Open in Explorer', page)[1])
        answer = people["team"].get(url)
        assert answer.status_code == 200
        csv_of = people["team"].get(f"{url}&format=csv")
        return url, next(csv.DictReader(io.StringIO(b"".join(csv_of).decode())))

    url, row = explored()
    assert {"node=gpu-1", "split=node", "measure=hit_rate"} <= set(url.partition("?")[2].split("&"))
    assert (row["name"], row["before"], row["value"]) == ("gpu-1", "0.8", "0.3")
    assert "to=" not in url  # goes on
    Incident.unscoped.update(ended_at=now)
    assert f"to={int(now.timestamp())}" in explored()[0]
