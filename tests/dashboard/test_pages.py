"""Pages: who sees what, actions, and a policy that lets nothing foreign in."""

import re
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape
from whitenoise.compress import main as compress

from catalog.models import GAUGES, Job, NodeSession, UsageRollup
from dashboard.page import QUIET, menu
from dashboard.storage import LEAVES_BY_TENANT, LEAVES_FIRST
from neve.formats.keys import BucketKeys
from neve.formats.parts import PartGroup, PartKind
from neve.node.membership import MemberState
from neve.node.stats import COUNTERS
from retention.models import EvictionPolicy, RetentionPolicy
from storage import hot
from support.rows import (
    make_context,
    make_everything,
    make_member,
    make_segment,
    make_session,
    make_space,
)
from tenants.keys import find_key
from tenants.models import ApiKey
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db, pytest.mark.usefixtures("hot_tier")]

DASHBOARD = Path(__file__).resolve().parents[2] / "dashboard"
PAGES = (
    *("overview", "nodes", "tiers", "families", "tenants", "contexts", "keys", "jobs", "audit"),
    *("what_if", "spaces", "policies"),
    *("savings", "system", "explorer"),
)


def address(name: str) -> str:
    return reverse(f"dashboard:{name}")


@pytest.mark.parametrize("name", PAGES)
def test_pages_answer_empty_and_full(people, acme, globex, name):
    for browser in people.values():
        assert browser.get(address(name)).status_code == 200
    make_everything(acme)
    make_everything(globex)
    answer = people["operator"].get(address(name))
    assert answer.status_code == 200
    assert b"None" not in answer.content


@pytest.mark.parametrize("name", PAGES)
def test_members_see_their_own_tenants_only(people, acme, globex, name):
    make_everything(acme)
    for one in make_everything(globex).values():
        if hasattr(one, "node"):
            one.node = "globex-node"
            one.save()
    assert b"globex" not in people["team"].get(address(name)).content
    assert b"acme" not in people["stranger"].get(address(name)).content


def test_another_tenant_does_not_exist(people, globex):
    for name in ("overview", "nodes", "tiers", "contexts"):
        assert people["team"].get(address(name), {"tenant": "globex"}).status_code == 404, name


def test_the_policy_lets_in_only_this_host_and_the_nonce(people):
    for browser, name in ((people["operator"], "overview"), (Client(), "login")):
        answer = browser.get(address(name))
        policy = answer["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        nonces = re.findall(r"'nonce-([^']+)'", policy)
        executable = re.findall(
            rb"<(?:script|style)(?![^>]*application/json)[^>]*>", answer.content
        )
        assert bool(nonces) == bool(executable)
        assert all(f'nonce="{nonces[0]}"'.encode() in tag for tag in executable)
    assert people["operator"].get("/")["Content-Security-Policy"] != policy


def test_templates_hold_no_inline_code_and_no_other_host():
    for path in DASHBOARD.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"\s(style|on[a-z]+)=", text), path.name
        assert not re.search(r"(src|href)=\"(https?:)?//", text), path.name
    for path in filter(Path.is_file, DASHBOARD.rglob("static/dashboard/**/*")):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), path.name


def test_numbers_stand_in_the_page_without_javascript(people, acme, report):
    make_session(make_space(acme))
    report(acme, time.time() - 20, requested_tokens=1000, hit_hot_tokens=714)
    text = people["viewer"].get("/").content.decode()
    assert "71.4" in text
    assert "is-empty" not in text


def test_an_empty_platform_says_what_to_do(people):
    text = people["operator"].get("/").content.decode()
    assert "waiting for a node" in text
    assert reverse("dashboard:keys") in text


@pytest.mark.parametrize("query", [{"range": "2y"}, {"since": "1"}, {"tenant": "nobody"}])
def test_nonsense_is_not_found(people, query):
    assert people["operator"].get(address("overview"), query).status_code == 404


@pytest.mark.parametrize("name", ["overview", "tiers"])
def test_what_leaves_a_full_hot_tier_is_told_as_the_policies_have_it(people, acme, globex, name):
    def told(browser) -> set[str]:
        text = " ".join(browser.get(address(name)).content.decode().split())
        orders = (*LEAVES_FIRST.values(), LEAVES_BY_TENANT)
        return {order for order in orders if escape(order) in text}

    assert told(people["operator"]) == {"first those that nobody used again"}
    with tenant_scope(acme.pk):
        RetentionPolicy.objects.update(eviction=EvictionPolicy.LRU)
    assert told(people["team"]) == {"the least recently used first"}
    assert told(people["operator"]) == {LEAVES_BY_TENANT}


@pytest.mark.parametrize("name", ["overview", "tiers"])
def test_what_becomes_of_new_blocks_in_a_full_cold_tier_is_told(people, acme, globex, name):
    def told(browser) -> str:
        return " ".join(browser.get(address(name)).content.decode().split())

    assert "When full, new blocks push out the longest unread." in told(people["operator"])
    with tenant_scope(acme.pk):
        RetentionPolicy.objects.update(cold_full="refuse")
    assert "Flushes are refused at 100 %." in told(people["team"])
    assert "as each tenant&#x27;s policy sets" in told(people["operator"]).replace("'", "&#x27;")


def test_a_flush_that_was_refused_says_so_in_the_list_of_jobs(people, acme):
    detail = {"refused_blocks": 22_093, "evicted_blocks": 0, "strange": "value"}
    now = timezone.now()
    Job.unscoped.create(kind="flush", tenant=acme, state="done", detail=detail, finished_at=now)
    folded = people["operator"].get(address("jobs")).content.decode()
    assert "1 flush refused" in folded
    page = people["operator"].get(f"{address('jobs')}?what=refused").content.decode()
    assert "blocks refused: the cold tier is full" in page
    assert "evicted" not in page


def test_damage_that_was_repaired_is_told(people, acme):
    repaired = {"damaged_keys": 1, "damaged_entries": 3, "stray_keys": 9}
    Job.unscoped.create(kind="reconcile", state="done", detail={"repaired": repaired})
    page = people["operator"].get(f"{address('jobs')}?what=done").content.decode()
    assert "4 damaged pieces of an index repaired" in page
    assert "bucket_mended" not in people["operator"].get(address("tiers")).content.decode()
    hot.admin().set(BucketKeys(acme.pk, 0).live_bytes, b"no sorted set")
    hot.mend_tenant(acme.pk)
    page = " ".join(people["team"].get(address("tiers")).content.decode().split())
    assert "1 damaged index entry was removed" in page


def test_a_space_shows_its_groups_and_what_a_request_loads(people, acme):
    space = make_space(acme)
    shown = people["team"].get("/spaces/").content.decode()
    assert "× window" not in shown
    groups = [PartGroup(PartKind.FULL, None, 16, 40), PartGroup(PartKind.WINDOW, 300, 16, 20)]
    space.groups = [group.as_dict() for group in [*groups, groups[1]]]
    space.save()
    shown = people["team"].get("/spaces/").content.decode()
    assert "2 × window 300, 20" in shown
    assert "a request" in shown


def test_kv_that_is_stored_with_loss_is_marked_wherever_it_is_shown(people, acme):
    space = make_space(acme)
    session, context = make_session(space), make_context(space)
    pages = ("/spaces/", f"/spaces/{space.pk}/", "/contexts/", f"/contexts/{context.pk}/")
    pages += ("/nodes/", f"/nodes/{session.pk}/")
    for page in pages:
        assert "lossy: " not in people["team"].get(page).content.decode(), page
    space.identity["codec"] = "int8"
    space.save()
    for page in pages:
        shown = people["team"].get(page).content.decode()
        assert "lossy: int8, error not measured, KL not measured" in shown, page
    space.measured_loss = {"codec": "int8", "error": 0.0103, "kl": 1.2e-4, "argmax": 0.99}
    space.save()
    for page in pages:
        shown = people["team"].get(page).content.decode()
        assert "lossy: int8, error 0.0103, KL 1.2e-04" in shown, page


def test_a_family_says_why_a_model_shares_nothing(people, acme):
    space = make_space(acme, "llama")
    place = {"layer": "model.layers.3", "first_token": 64, "end_token": 96}
    make_member(space, "tuned", state=MemberState.REFUSED, **place)
    make_member(space, "twin", state=MemberState.ATTACHED, blocks=9, hit_tokens=1280)
    page = people["operator"].get("/families/").content.decode()
    assert page.index("▲ refused") < page.index("● attached")
    assert "other KV at model.layers.3, prompt tokens 64 to 96" in page
    assert "9 blocks were equal to the bit" in page
    assert "prove its KV again" in page
    looking = people["viewer"].get("/families/").content.decode()
    assert "▲ refused" in looking
    assert "prove its KV again" not in looking


def test_a_node_shows_how_many_states_it_stored(people, acme):
    session = make_session(make_space(acme), totals={"put_blocks": 5})
    assert "stored</small>" not in people["team"].get("/nodes/").content.decode()
    session.totals |= {"put_states": 2}
    session.save()
    assert "2 states stored</small>" in people["team"].get("/nodes/").content.decode()


def test_a_node_with_a_scheduler_of_its_own_is_one_line_with_the_rate_of_both(people, acme):
    space = make_space(acme)
    asked = {"requested_tokens": 12}
    part = make_session(space, "loc/scheduler", totals=asked)
    loaded = {"hit_local_tokens": 9, "local_read_bytes": 42 << 20}
    ranks = make_session(space, "loc", totals=loaded)
    listed = people["team"].get("/nodes/").content.decode()
    assert "loc/scheduler" not in listed
    assert re.search(r"\b42(\.0)?\b.{0,60}MiB", listed, re.DOTALL)
    for one in (ranks, part):
        page = people["team"].get(f"/nodes/{one.pk}/").content.decode()
        assert "75" in page
        assert re.search(r"\b42(\.0)?\b.{0,60}MiB", page, re.DOTALL)
    part.last_heartbeat_at -= timedelta(hours=1)  # it is silent: that must be seen
    part.save()
    assert "loc/scheduler" in people["team"].get("/nodes/").content.decode()


def test_what_segments_take_is_told_in_three_parts(people, acme, globex):
    space = make_space(acme)
    make_segment(space, size_bytes=5 << 20, live_bytes=3 << 20)
    make_segment(space, size_bytes=7 << 20, state="deleting")
    make_segment(make_space(globex), size_bytes=1 << 20, live_bytes=0)
    for name, dead in (("team", 2), ("operator", 3)):
        page = people[name].get(address("tiers")).content.decode()
        told = " ".join(re.sub(r"<[^>]*>", " ", page.split("What S3 holds", 1)[1]).split())
        assert re.match(rf"Live 3 MiB .* Dead {dead} MiB .* Waiting 7 MiB", told)


def test_a_page_offers_only_what_it_narrows_by_and_says_when_it_is_wider(people, acme):
    query = {"tenant": "acme", "node": "gpu-1"}
    overview = people["operator"].get("/", query).content.decode()
    nodes = people["operator"].get("/nodes/", query).content.decode()
    assert "<span>Node</span>" not in overview
    assert "all spaces, nodes and labels" in overview
    assert '<input type="hidden" name="node" value="gpu-1">' in overview  # other pages still do
    assert "<span>Node</span>" in nodes
    assert "<span>Label</span>" not in nodes
    assert "all spaces, nodes and labels" not in nodes
    assert "all spaces" not in people["operator"].get("/").content.decode()
    explorer = people["operator"].get("/explorer/", query).content.decode()
    assert all(f"<span>{name}</span>" in explorer for name in ("Space", "Node", "Label"))


def test_the_overview_asks_as_often_for_many_tenants_as_for_few(
    people, acme, django_assert_max_num_queries
):
    make_everything(acme, 5)
    with django_assert_max_num_queries(34):
        people["operator"].get("/")


def test_only_pages_with_figures_of_nodes_hear_of_heartbeats(people, acme):
    names = {item["name"] for group in menu() for item in group}
    quiet = {
        name
        for name in names
        if 'data-socket="/ws/changes"'
        in people["operator"].get(reverse(f"dashboard:{name}")).content.decode()
    }
    assert quiet == names & QUIET
    assert not quiet & {"overview", "explorer", "nodes", "tiers", "tenants", "contexts", "spaces"}


def test_a_new_key_is_shown_once_and_works(people, acme):
    form = {"name": "gpu pool", "role": "node", "tenant": "acme", "ends": "30 d"}
    answer = people["operator"].post("/keys/", form)
    secret = re.search(r"data-secret>(neve_\w+)<", answer.content.decode()).group(1)
    key = find_key(secret)
    assert (key.tenant, key.role) == (acme, "node")
    assert secret not in people["operator"].get("/keys/").content.decode()
    url = reverse("dashboard:key-revoke", kwargs={"key_id": key.pk})
    assert "Revoke “gpu pool”?" in people["operator"].get(url).content.decode()
    assert find_key(secret) is not None
    people["operator"].post(url)
    assert find_key(secret) is None


def test_a_page_that_is_loaded_again_makes_no_second_key(people):
    browser = people["operator"]
    once = re.search(r'name="once" value="([^"]+)"', browser.get("/keys/").content.decode())[1]
    form = {"name": "gpu pool", "role": "node", "tenant": "nobody", "ends": "", "once": once}
    assert browser.post("/keys/", form).status_code == 400  # a refused form may be corrected
    form["tenant"] = "acme"
    assert b"data-secret" in browser.post("/keys/", form).content
    again = browser.post("/keys/", form)
    assert again.status_code == 200
    assert "“gpu pool” was made before" in again.content.decode()
    assert b"data-secret" not in again.content
    other = browser.post("/keys/", form | {"name": "other"})
    assert other.status_code == 400
    assert b"another request was sent with this key" in other.content
    assert ApiKey.unscoped.count() == 1


@pytest.mark.parametrize(
    "wrong", [{"name": " "}, {"role": "root"}, {"tenant": "nobody"}, {"ends": "soon"}]
)
def test_a_wrong_form_makes_no_key(people, wrong):
    form = {"name": "gpu pool", "role": "node", "tenant": "acme", "ends": ""} | wrong
    assert people["operator"].post("/keys/", form).status_code == 400
    assert not ApiKey.unscoped.exists()


def test_only_operators_make_and_revoke_node_keys(people, acme):
    form = {"name": "mine", "role": "node", "tenant": "acme", "ends": ""}
    people["operator"].post("/keys/", form)
    key = ApiKey.unscoped.get()
    assert people["team"].post("/keys/", form).status_code == 404
    url = reverse("dashboard:key-revoke", kwargs={"key_id": key.pk})
    assert people["team"].post(url).status_code == 404
    assert ApiKey.unscoped.filter(revoked_at=None).count() == 1


def test_signing_in_and_out(people, client):
    assert (
        b"Not signed in"
        in client.post("/login/", {"username": "team", "password": "wrong"}).content
    )
    answer = client.post("/login/", {"username": "team", "password": "pw", "next": "/nodes/"})
    assert answer["Location"] == "/nodes/"
    away = {"username": "team", "password": "pw", "next": "https://elsewhere.example/"}
    assert Client().post("/login/", away)["Location"] == "/"
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/")["Location"] == "/login/"
    assert client.get("/").status_code == 302


def test_the_theme_is_remembered(people):
    people["team"].cookies["neve_theme"] = "dark"
    assert b'data-theme="dark"' in people["team"].get("/").content
    people["team"].cookies["neve_theme"] = '"><script>'
    assert b"data-theme" not in people["team"].get("/").content


@pytest.mark.parametrize(("encoding", "most_bytes"), [("br", 330_000), ("gzip", 400_000)])
def test_plotly_is_sent_packed_and_kept_by_browsers(people, encoding, most_bytes):
    """As `make` packs it: without its packed copies, WhiteNoise would send 1.2 MB."""
    compress(["--quiet", str(DASHBOARD / "static" / "plotly")])
    page = people["viewer"].get("/").content.decode()
    path = re.search(r'src="(/static/plotly/[^"]+)"', page)[1]
    answer = Client().get(path, headers={"Accept-Encoding": encoding})
    assert answer["Content-Encoding"] == encoding
    assert len(answer.getvalue()) < most_bytes
    assert "immutable" in answer["Cache-Control"]
    plain = Client().get(path).getvalue()
    assert b"plotly.js (basic - minified) v" in plain[:200]


def test_rows_and_counters_that_no_node_could_have_counted_take_no_page_down(
    people, acme, globex, report, clean_hot
):
    """As an older version stored them, or a tenant wrote them into its own part of Valkey."""
    now, space = time.time(), make_space(acme)
    for tenant in (acme, globex):
        report(tenant, now, requested_tokens=100, hit_hot_tokens=50)
    session = make_session(space)
    NodeSession.unscoped.filter(pk=session.pk).update(
        totals={"requested_tokens": "many", "hot_read_bytes": 10**40, "dropped": None}
    )
    big = dict.fromkeys((*COUNTERS, *GAUGES), 2**63 - 1)
    big["hit_hot_tokens"] = -(2**63)
    UsageRollup.unscoped.update(
        **big,
        misses={"evicted": 10**30, "quota": "few", "<=x": -1},
        load_ms={"<=abc": 1, "<=inf": 5, "<=1": 2**70},
    )
    with clean_hot.client() as client:
        dirty, usage = BucketKeys(acme.pk, 0).bookkeeping[2:4]
        client.hset(usage, mapping={"hot_bytes": "1e400", "dirty_blocks": "x"})
        client.zadd(dirty, {b"x" * 16: float("-inf")})
    for name in PAGES:
        for asked in ({"range": "15m"}, {"range": "7d"}) if name.startswith("overview") else ({},):
            answer = people["operator"].get(address(name), asked)
            assert answer.status_code == 200, name
    for range_ in ("15m", "6h", "30d"):
        answer = people["operator"].get("/api/v1/usage", {"range": range_})
        assert answer.status_code == 200
        (point,) = answer.json()["points"]
        assert point["misses"] == {"evicted": 2**53}
        assert point["put_blocks"] == 2 * 2**53
    report(acme, now, put_blocks=1, misses={"evicted": 1}, load_ms={"<=1": 1})  # heartbeats go on
    clean_hot.wipe()


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_does_not_know_is_not_taken_for_everything(people, name):
    browser = people["operator"]
    asked = ["tennant=acme", "page=x", "page=-1", "range=1y", "tenant=acme&tenant=globex"]
    for query in asked:
        assert browser.get(f"{address(name)}?{query}").status_code == 404, query


def test_the_page_of_spaces_says_when_loading_beats_computing(people, acme):
    page = people["team"].get("/spaces/").content.decode()
    assert "No space yet" in page
    space = make_space(acme, "llama-8b")
    assert "No live node has measured" in people["team"].get("/spaces/").content.decode()
    speeds = {"prefill_s_per_token": 1e-4, "hot_bytes_per_s": 13.1072e9, "cold_bytes_per_s": 1.0}
    make_session(space, "gpu-1", speeds=speeds, totals={"decided_all": 12, "decided_recompute": 3})
    page = people["team"].get("/spaces/").content.decode()
    assert "Loading from the hot tier beats computing from 256 tokens on" in page
    assert "loading from the cold tier never beats computing" in page
    assert "Median of 1 node." in page
    assert '12<span class="unit"> loaded</span>' in page
    assert '3<span class="unit"> computed</span>' in page


def test_pages_that_name_no_icon_have_one():
    answer = Client().get("/favicon.ico")
    assert answer.status_code == 302
    assert answer["Location"].endswith(".svg")
