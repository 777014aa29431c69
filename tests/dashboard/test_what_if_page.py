"""The page What-if: what it says with and without samples, its form, and whose numbers it shows."""

from dataclasses import replace

import pytest
from celery import current_app

from catalog import jobs
from catalog.kinds import RECOMMEND, WHAT_IF
from catalog.models import Job
from catalog.targets import Opener
from dashboard.pages.what_if.selector import apply_links, change_asked, fields_of, moves_of
from neve.planner.changes import Change
from planning import whatif
from support.sampled_tenant import fill
from tenants.audit import SYSTEM

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("hot_tier"),
]

MIB = 1 << 20


@pytest.fixture(autouse=True)
def stored(monkeypatch, s3, valkey_bus):
    monkeypatch.setattr(current_app, "send_task", lambda name, **kwargs: None)


@pytest.fixture
def busy(acme):
    """With samples and a recommendation."""
    fill(acme)
    whatif.recommend(Opener(RECOMMEND, acme.pk), acme.pk)
    return acme


ADDRESS = "/what-if/"


def test_without_samples_the_page_says_what_to_do(people, acme):
    page = people["team"].get(ADDRESS).content.decode()
    assert "There are no samples of this tenant" in page
    assert "switches samples on and off" in page
    assert "No curve yet" in page
    assert "You see no tenant" in people["stranger"].get(ADDRESS).content.decode()


def test_the_page_has_curve_check_money_and_moves(people, busy):
    page = people["team"].get(ADDRESS).content.decode()
    advice = whatif.advice_of(busy.pk)
    assert advice.words in page
    assert "they agree" in page
    assert page.count('<tr><td class="num">') >= 9  # the table of the curve
    assert "Moves, best first" in page
    assert "hot quota 700 MiB → 1.367 GiB" in page
    assert "From 1 in 4 blocks of acme" in page
    assert "Apply: ask an operator" in page
    assert "µs of prefill a token" in page
    operator = people["operator"].get(f"{ADDRESS}?tenant=acme&move=0").content.decode()
    assert "/tenants/acme/?tab=" in operator.partition("Apply to the ")[0].rpartition("<a ")[2]
    assert "None" not in operator


def test_a_move_is_applied_on_the_pages_of_the_tenant(busy):
    result = whatif.advice_of(busy.pk).result
    moves = {each.words: each for each in moves_of(result)}
    quota = next(move for words, move in moves.items() if words.startswith("hot quota"))
    assert apply_links(busy, quota) == [("Apply to the quota…", "/tenants/acme/?tab=use")]
    spans = replace(quota, changed=frozenset({"cold_lifetime"}))
    spans.setting["ttl_s"] = 14 * 86_400
    assert apply_links(busy, spans) == [
        ("Apply to the policy…", "/tenants/acme/?tab=policy&cold_ttl_s=14+d")
    ]
    assert apply_links(busy, replace(quota, changed=frozenset({"codec"}))) == []


def test_of_several_tenants_the_page_asks_for_one(people, busy, globex):
    page = people["operator"].get(f"{ADDRESS}?change=cold%3Dx2").content.decode()
    assert "Of which tenant?" in page
    assert whatif.advice_of(busy.pk).words in page
    assert "/what-if/?tenant=globex&amp;change=cold%3Dx2" in page
    assert "Work it out" not in page
    asked = people["operator"].post(ADDRESS, {"hot": "9"}).content.decode()
    assert "Of which tenant?" in asked
    assert not Job.unscoped.filter(kind="what_if").exists()


def test_the_form_asks_and_the_page_shows_the_answer(people, busy):
    browser = people["team"]
    today = whatif.today_of(busy.pk, block_bytes=MIB)
    form = {field.name: field.value for field in fields_of(today)} | {"hot": "1.5"}
    answer = browser.post(f"{ADDRESS}?tenant=acme", form)
    assert answer.status_code == 302, answer.content
    running = browser.get(answer.url).content.decode()
    assert "The simulation is queued" in running
    assert 'value="1.5"' in running  # the levers stay where they were put
    job = Job.unscoped.get(kind="what_if")
    assert job.arguments["changes"] == [{"hot": "1.5GiB"}]
    with jobs.job_run(job.pk) as run:
        whatif.work(Opener(WHAT_IF, busy.pk, run), busy.pk, **job.arguments)
    done = browser.get(answer.url).content.decode()
    assert "hot quota 700 MiB → 1.5 GiB" in done
    assert "◆ if applied" in done
    assert 'value="1.5"' in done


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "Change at least one value"),
        ({"hot": ""}, "Hot quota: give a number"),
        ({"hot": "many"}, "needs to be such as"),
        ({"cold_lifetime": "long"}, "give a number of days"),
        ({"eviction": "fifo"}, "eviction"),
    ],
)
def test_a_form_without_sense_is_shown_again_with_the_reason(people, acme, given, words):
    today = whatif.today_of(acme.pk, block_bytes=MIB)
    form = {field.name: field.value for field in fields_of(today)} | given
    answer = people["team"].post(f"{ADDRESS}?tenant=acme", form)
    assert answer.status_code == 400
    assert words in answer.content.decode()
    for typed in given.values():
        assert not typed or typed == "fifo" or f'value="{typed}"' in answer.content.decode()
    assert not Job.unscoped.exists()


def test_the_form_turns_units_into_a_change(acme):
    today = whatif.today_of(acme.pk, block_bytes=MIB)
    given = {"cold_lifetime": "0.5", "hot_idle": "6", "codec": "2", "local": "10"}
    assert change_asked(given, today) == {
        "cold_lifetime": "43200s",
        "hot_idle": "21600s",
        "codec": "2",
        "local": "10GiB",
    }


def test_a_cold_quota_without_limit_is_an_empty_lever(acme):
    today = whatif.today_of(acme.pk, block_bytes=MIB)
    change = change_asked({"cold": ""}, today)
    assert change == {"cold": "unlimited"}
    tried = fields_of(Change.of(change).apply(today))
    assert {each.name: each.value for each in tried}["cold"] == ""


def test_nobody_sees_another_tenants_numbers(people, busy, globex):
    job = whatif.request(
        tenant=busy,
        changes=[whatif.Change(hot="x2")],
        window_s=3600,
        space=None,
        actor=SYSTEM,
    )
    for query in ("?tenant=acme", f"?tenant=acme&job={job.pk}", f"?job={job.pk}"):
        answer = people["stranger"].get(ADDRESS + query)
        assert answer.status_code == 404 or b"acme" not in answer.content
    assert people["operator"].get(f"{ADDRESS}?tenant=globex&job={job.pk}").status_code == 404
    assert people["team"].get(f"{ADDRESS}?tenant=globex").status_code == 404
    assert people["team"].post(f"{ADDRESS}?tenant=globex", {"hot": "9"}).status_code == 404
    for query in ("?job=x", "?move=x", "?other=1"):
        assert people["team"].get(ADDRESS + query).status_code == 404
