"""The pages Contexts and Context: the list, the tree, actions on one and on many."""

import os
import re
import secrets
from dataclasses import replace
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from catalog import jobs
from catalog.kinds import BULK
from catalog.models import Context, Job
from catalog.targets import Opener
from contexts import bulk, prefix_cache
from dashboard.pages.contexts import listing
from neve.formats.keys import BucketKeys
from neve.index.tier import BlockTerms, HotTier
from retention import services as retention
from storage import hot
from support.rows import make_context, make_space
from tenants.audit import SYSTEM
from tenants.principal import rows_of

pytestmark = [pytest.mark.integration, pytest.mark.django_db, pytest.mark.usefixtures("hot_tier")]


@pytest.fixture(autouse=True)
def fresh_trees(monkeypatch):
    """Spaces of other tests, which were rolled back, had the same numbers."""
    monkeypatch.setattr(prefix_cache, "_kept", {})
    monkeypatch.setattr(prefix_cache, "_VERSION", secrets.token_hex(4))
    monkeypatch.setattr(prefix_cache, "FRESH_S", 0)
    monkeypatch.setattr(prefix_cache, "REST_TIMES", 0)


def context_of(tenant) -> Context:
    """Nothing of it is stored."""
    return make_context(make_space(tenant, f"s-{tenant.slug}"))


def stored_context_of(tenant) -> Context:
    context = context_of(tenant)
    for id_ in context.ids():
        hot.admin().set(BucketKeys(tenant.pk, 0).block(context.space_id, id_), b"x" * 9, px=60_000)
    tier = hot.hot_tier(tenant.pk)
    tier.set_policy(hot_bytes=1 << 20, cold_bytes=0, terms=BlockTerms())
    tier.commit(context.space_id, [(id_, 9, 256) for id_ in context.ids()])
    return context


def act(browser, action: str, context, **form):
    if action == "pin":
        form = {"until": "tomorrow 18:00"} | form
    return browser.post(reverse(f"dashboard:context-{action}", args=[context.pk]), form)


def refused(browser, action: str, context, **form) -> str:
    """What the page says behind an action that was not done."""
    assert act(browser, action, context, **form).status_code == 302
    return text_of(page_of(browser, context))


def text_of(answer) -> str:
    """Words of a page."""
    return " ".join(re.sub(r"<[^>]+>", "", answer.content.decode()).split())


def page_of(browser, context, **query):
    return browser.get(reverse("dashboard:context", args=[context.pk]), query)


def test_the_list_shows_state_labels_and_last_use(people, acme):
    context = context_of(acme)
    Context.unscoped.filter(pk=context.pk).update(
        state="lost", labels={"team": "<b>blue</b>"}, last_used_at=timezone.now()
    )
    page = people["team"].get("/contexts/", {"cols": "name,used,lost,state"}).content.decode()
    assert "team=&lt;b&gt;blue&lt;/b&gt;" in page
    assert "Last used" in page
    assert text_of(people["team"].get("/contexts/", {"state": "lost"})).count("ctx") > 0
    assert "Nothing here fits" in text_of(people["team"].get("/contexts/", {"state": "stored"}))


def test_the_search_of_the_list_has_words_of_its_own(people, acme, globex):
    space = make_space(acme, "s-words")
    old = timezone.now() - timedelta(days=9)
    for name, label, used in (("repo-1", "nightly", old), ("repo-2", "", timezone.now())):
        made = make_context(space, name)
        Context.unscoped.filter(pk=made.pk).update(
            label=label, last_used_at=used, size_bytes=3 << 30, labels={"team": name}
        )
    make_context(make_space(globex, "s-globex"), "repo-3")

    def names(**query):
        page = people["team"].get("/contexts/", query | {"format": "csv"})
        lines = b"".join(page.streaming_content).decode().splitlines()[1:]
        return sorted(line.split(",")[0] for line in lines)

    assert names() == ["repo-1", "repo-2"]
    assert names(q="po-1") == names(q="*-1") == names(q="label:nightly") == ["repo-1"]
    assert names(q="idle>7d") == names(q="repo team=repo-1") == ["repo-1"]
    assert names(q="size>1GiB repo-2") == names(q="-2", larger="1GiB") == ["repo-2"]
    assert names(unused="7d") == ["repo-1"]
    assert names(q="size>10GiB") == names(pinned="yes") == names(q="idle>9999999d") == []


@pytest.mark.parametrize("typed", ["0 s", "366 d", "9999999999 d", "soon"])
def test_an_extension_of_more_than_a_year_is_refused(people, acme, typed):
    context = context_of(acme)
    assert "by: need" in refused(people["team"], "extend", context, **{"for": typed})
    form = {"what": "ticked", "ids": [context.pk], "action": "extend", "for": typed}
    answer = people["team"].post("/contexts/act", form)
    assert (answer.status_code, "by: need" in text_of(answer)) == (400, True)


def test_a_page_asks_for_the_places_of_so_many_blocks(acme, monkeypatch):
    for name in ("one", "two"):
        make_context(make_space(acme, f"s-{name}"), name)
    asked = []
    match = HotTier.match

    def noted(tier, ids):
        asked.append(len(ids))
        return match(tier, ids)

    rows = list(Context.unscoped.select_related("space", "tenant").order_by("name"))
    monkeypatch.setattr(HotTier, "match", noted)
    assert set(listing._asked(rows)) == {row.pk for row in rows}
    monkeypatch.setattr(listing, "MOST_ASKED", 4)
    assert set(listing._asked(rows)) == {rows[0].pk}
    assert asked == [6, 3]


def test_the_bytes_that_are_shown_are_those_that_sort(people, acme):
    """The index may know other bytes by now: the last check's stand there, and sort."""
    space = stored_context_of(acme).space
    for name, mib in (("c-26", 26), ("c-88", 88), ("c-new", None), ("c-72", 72)):
        made = make_context(space, name, [secrets.token_bytes(16)])
        size = None if mib is None else mib << 20
        Context.unscoped.filter(pk=made.pk).update(size_bytes=size)
    page = people["team"].get("/contexts/", {"cols": "name,size", "q": "c-"})
    table = page.content.decode().rpartition("<tbody")[2]
    rows = re.findall(r">c-(\w+)<.*?<td[^>]*>(.*?)</td>", table, re.DOTALL)
    shown = [(name, re.sub(r"<[^>]+>", "", size).strip()) for name, size in rows]
    now = "now 0\N{NO-BREAK SPACE}B"  # none of these blocks is stored
    sizes = [("88", "88 MiB"), ("72", "72 MiB"), ("26", "26 MiB"), ("new", "—")]
    assert shown == [(name, f"{size} {now}") for name, size in sizes]
    assert "186\N{NO-BREAK SPACE}MiB in all, shared blocks in each" in page.content.decode()


def test_a_preview_of_warming_counts_what_can_be_warmed(people, acme):
    space = stored_context_of(acme).space
    text = below(people["team"], space, "warm").content.decode()
    assert "Warm 0 contexts?" in text
    assert "Left out: 1 context without known tokens" in text
    assert 'name="token"' in text
    assert 'class="button primary"' not in text.partition("data-asked")[2].partition("</form>")[0]


def test_a_team_member_pins_until_a_typed_time_and_unpins(people, acme):
    context = stored_context_of(acme)
    assert act(people["team"], "pin", context, reason="release").status_code == 302
    context.refresh_from_db()
    assert context.is_pinned
    shown = text_of(page_of(people["team"], context))
    assert "3 blocks are kept" in shown
    assert ": release" in shown
    assert "3 blocks are kept" not in text_of(page_of(people["team"], context))  # said once
    assert "until: need a time" in refused(people["team"], "pin", context, until="soon")
    assert act(people["team"], "unpin", context).status_code == 302
    context.refresh_from_db()
    assert not context.is_pinned


def test_a_pin_shows_whose_it_is_and_ends_by_its_owner_or_an_operator(people, acme):
    context = stored_context_of(acme)
    act(people["operator"], "pin", context)
    text = text_of(page_of(people["team"], context))
    assert "operator until" in text
    assert "Unpin" not in text
    assert "is pinned by operator until" in refused(people["team"], "expire", context)
    act(people["team"], "pin", context)
    assert "Unpin all" in text_of(page_of(people["operator"], context))
    act(people["team"], "unpin", context)
    context.refresh_from_db()
    assert context.is_pinned
    act(people["team"], "pin", context)
    assert "only operators" in refused(people["team"], "unpin", context, all="1")
    act(people["operator"], "unpin", context, all="1")
    context.refresh_from_db()
    assert not context.is_pinned


def test_expire_says_first_how_much_it_touches_and_what_others_hold(people, acme):
    context = stored_context_of(acme)
    make_context(context.space, "sharer", context.ids()[:1])
    url = reverse("dashboard:context-expire", kwargs={"uuid": context.pk})
    told = text_of(people["team"].get(url))
    assert "Removes 2 blocks (18 B) of 3 from both tiers" in told
    assert "1 block (9 B) stays since other contexts hold it" in told
    context.refresh_from_db()
    assert context.expired_at is None
    assert people["team"].post(url).status_code == 302
    context.refresh_from_db()
    assert context.expired_at is not None
    assert "was expired at" in refused(people["team"], "pin", context)


def test_a_context_says_what_happened_how_long_it_lives_and_who_shares_it(people, acme):
    context = stored_context_of(acme)
    sharer = make_context(context.space, "sharer", [*context.ids()[:1], os.urandom(16)])
    retention.add_rule(
        tenant=acme, label="nightly", overrides={"cold_ttl_s": 14 * 86_400}, actor=SYSTEM
    )
    act(people["team"], "change", context, label="nightly", labels="stage=prod")
    assert act(people["team"], "extend", context, **{"for": "30 d"}).status_code == 302
    text = text_of(page_of(people["team"], context, diff="sharer"))
    assert "label nightly" in text
    assert "14 d from storing" in text
    assert "1 other context begins as it does" in text
    assert "They part at token 256: 256 tokens (1 block) are shared" in text
    assert "extended: extended until" in text
    assert "stage" in text
    assert f"/contexts/{sharer.pk}/" in page_of(people["team"], context).content.decode()
    assert "No other context" in text_of(page_of(people["team"], context, diff="nobody"))
    assert "has a context" in refused(people["team"], "change", context, name="sharer")


def test_a_context_is_deleted_after_a_question(people, acme):
    context = context_of(acme)
    url = reverse("dashboard:context-delete", kwargs={"uuid": context.pk})
    assert f"Delete {context.name}?" in people["team"].get(url).content.decode()
    assert rows_of(Context, (acme,)).exists()
    assert act(people["team"], "delete", context).status_code == 302
    assert not rows_of(Context, (acme,)).exists()


def below(browser, space, action, key="", **form):
    form = {"what": "below", "of": space.pk, "key": key, "action": action, **form}
    return browser.post(reverse("dashboard:contexts-act"), form)


def test_a_prefix_is_expired_after_its_preview_and_frees_what_it_said(people, acme):
    one = stored_context_of(acme)
    make_context(one.space, "sharer", one.ids()[:1])
    key = f"3-{one.ids()[2].hex()}"
    page = people["team"].get("/contexts/", {"at": key}).content.decode()
    assert 'aria-selected="true" aria-label="ctx' in page
    asked = below(people["team"], one.space, "expire", key)
    told = text_of(asked)
    assert "Expire 1 context?" in told
    assert "Frees 18 B: 18 B in Valkey at once" in told
    assert "9 B shared with 1 context outside stays." in told
    assert "Expire 1 context: frees 18 B" in told
    token = re.search(r'name="token" value="([0-9a-f-]+)"', asked.content.decode()).group(1)
    for stranger in ("operator", "viewer", "stranger"):
        answer = people[stranger].post(reverse("dashboard:contexts-act"), {"token": token})
        assert answer.status_code == 404
    started = people["team"].post(reverse("dashboard:contexts-act"), {"token": token})
    assert started.status_code == 302
    before = hot.hot_tier(acme.pk).usage().hot_bytes
    (job,) = Job.unscoped.filter(kind="bulk")
    with jobs.job_run(job.pk) as run:
        bulk.work(Opener(BULK, acme.pk, run), acme.pk, **job.arguments)
    assert before - hot.hot_tier(acme.pk).usage().hot_bytes == 18
    assert "Expiring 1 context: 1 done" in text_of(people["team"].get(started["Location"]))


def test_ticked_rows_and_all_that_is_found_are_acted_on_together(people, acme, globex):
    space = make_space(acme, "s-several")
    made = [make_context(space, f"repo-{n}") for n in range(3)]
    other = make_context(make_space(globex, "s-other"), "repo-9")
    url, team = reverse("dashboard:contexts-act"), people["team"]
    form = {"action": "label", "label": "team=blue", "what": "ticked"}
    asked = text_of(team.post(url, form | {"ids": [made[0].pk, made[1].pk, other.pk]}))
    assert "Label 2 contexts “team=blue”" in asked
    assert "Tick the rows" in text_of(team.post(url, form))
    assert "Label 3 contexts" in text_of(team.post(url, form | {"what": "found"}))
    assert "Label 1 context “" in text_of(team.post(f"{url}?q=po-2", form | {"what": "found"}))
    pin = {"action": "pin", "until": "in 2 d", "what": "found"}
    assert re.search(
        r"Pin 3 contexts until \w{3} \d+ \w{3}, \d\d:\d\d", text_of(team.post(url, pin))
    )
    assert "until: need a time" in text_of(team.post(url, pin | {"until": "soon"}))
    several = {"ids": [made[0].pk, other.pk]} | form | {"what": "ticked"}
    assert "choose a tenant" in text_of(people["operator"].post(url, several))


@pytest.mark.parametrize("action", ["pin", "unpin", "extend", "change", "expire", "delete"])
def test_viewers_and_strangers_change_nothing(people, acme, globex, action):
    mine, theirs = context_of(acme), context_of(globex)
    assert act(people["viewer"], action, mine).status_code == 404
    assert act(people["stranger"], action, mine).status_code == 404
    assert act(people["team"], action, theirs).status_code == 404
    assert rows_of(Context, (acme, globex)).filter(expired_at=None).count() == 2


def test_actions_need_the_csrf_token(people, acme):
    browser = Client(enforce_csrf_checks=True)
    browser.cookies = people["team"].cookies
    assert act(browser, "pin", context_of(acme)).status_code == 403


def test_a_hot_tier_that_is_down_is_said_on_the_pages(people, acme, settings):
    context = context_of(acme)
    settings.ENV = replace(settings.ENV, hot_url="valkey://127.0.0.1:1/0")
    assert "The hot tier did not answer." in refused(people["team"], "pin", context)
    assert page_of(people["team"], context).status_code == 200
    assert people["team"].get("/contexts/").status_code == 200
    assert people["team"].get("/").status_code == 200
