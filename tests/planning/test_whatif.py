"""What-if jobs and recommendations: from stored samples to a result, with the real simulator."""

from datetime import timedelta
from itertools import count as count_up

import pytest
from celery import current_app
from django.utils import timezone

from base.problems import Problem
from catalog import jobs
from catalog.kinds import RECOMMEND, WHAT_IF
from catalog.models import Job, Space
from catalog.targets import Opener
from neve.planner.changes import Change
from neve.planner.simulate.requests import BlockRequest
from planning import simulating, whatif
from retention.models import RetentionPolicy
from support.rows import make_space, make_tenant
from support.sampled_tenant import BLOCK_BYTES, fill
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import AuditEvent, Quota, Tenant
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

MIB = 1 << 20


@pytest.fixture(autouse=True)
def sent(monkeypatch):
    calls = []
    monkeypatch.setattr(current_app, "send_task", lambda name, **kwargs: calls.append(name))
    return calls


@pytest.fixture
def acme(s3, valkey_bus, clean_hot):
    tenant = make_tenant("acme")
    with tenant_scope(tenant.pk):
        Quota.objects.update(hot_bytes=700 * MIB, cold_bytes=2500 * MIB)
    return tenant


@pytest.fixture
def busy(acme):
    """With samples, counts and speeds of the last hours."""
    fill(acme)
    return acme


def ask(tenant, *changes, window_s=3 * 3600, space=None):
    return whatif.request(
        tenant=tenant,
        changes=[Change(**change) for change in changes],
        window_s=window_s,
        space=space,
        actor=SYSTEM,
    )


def do(job):
    """As the worker does a request."""
    work = {WHAT_IF.name: whatif.work, RECOMMEND.name: whatif.recommend}[job.kind]
    kind = {kind.name: kind for kind in (WHAT_IF, RECOMMEND)}[job.kind]
    with jobs.job_run(job.pk) as run:
        work(Opener(kind, job.tenant_id, run), job.tenant_id, **job.arguments)
    job.refresh_from_db()
    return job


def test_a_request_becomes_a_comparison_with_errors_and_a_check(busy, sent):
    job = ask(busy, {"hot": "x2"}, {"cold_lifetime": "1h"}, {"codec": "2"})
    assert (sent, job.state) == (["workers.what_if"], "queued")
    assert AuditEvent.unscoped.get(action="what_if.request").after["window_s"] == 10800
    found = do(job).detail
    assert job.state == "done"
    assert job.progress == 1.0
    assert [each["words"] for each in found["changes"]] == [
        "hot quota 700 MiB → 1.367 GiB",
        "lifetime unlimited → 1 h",
        "codec none → 2 ×",
    ]
    assert found["calibration"]["is_good"], found["calibration"]["words"]
    assert found["samples"]["rate"] == 1 / 4
    hits = found["today"]["figures"]["hit_rate"]
    assert 0.3 < hits["value"] < 0.9
    assert 0 < hits["error"] < 0.1
    assert found["changes"][0]["against"]["hit_rate.hot"]["value"] > 0
    assert found["changes"][1]["against"]["hit_rate"]["value"] < 0
    economics = found["economics"]
    assert economics["prefill_gpu_s_per_token"] == pytest.approx(1e-4)
    assert economics["load_gpu_s_per_token"]["cold"] == pytest.approx(MIB / 256 / 2e8)
    assert economics["gets_per_hit"] == 1.0
    counted_s = found["window"]["to_s"] - found["window"]["from_s"]
    assert 2 * 3600 < counted_s <= 3 * 3600
    assert found["window"]["warm_up_s"] > 1800


def test_a_recommendation_is_made_kept_and_outdated_by_another_quota(busy):
    assert whatif.advice_of(busy.pk).verdict == "unknown"
    assert whatif.tenants_to_advise() == [(busy.pk, {})]
    whatif.recommend(Opener(RECOMMEND, busy.pk), busy.pk)
    advice = whatif.advice_of(busy.pk)
    assert advice.verdict in ("change", "nothing")
    assert advice.result is not None
    assert advice.result["calibration"]["is_good"]
    assert len(advice.result["curve"]) == 9
    assert not advice.is_outdated
    assert whatif.tenants_to_advise() == []
    with tenant_scope(busy.pk):
        Quota.objects.update(hot_bytes=MIB)
    assert whatif.advice_of(busy.pk).is_outdated
    Job.unscoped.update(created_at=timezone.now() - timedelta(hours=7))
    assert whatif.tenants_to_advise() == [(busy.pk, {})]


def test_after_too_few_samples_the_next_recommendation_comes_soon(busy):
    whatif.recommend(Opener(RECOMMEND, busy.pk), busy.pk)
    Job.unscoped.update(created_at=timezone.now() - timedelta(minutes=20))
    assert whatif.tenants_to_advise() == []
    Job.unscoped.update(detail={"recommendation": {"reason": "too_few_samples"}})
    assert whatif.tenants_to_advise() == [(busy.pk, {})]


def test_only_the_reads_of_a_space_are_played(busy):
    space, other = Space.unscoped.get(tenant=busy), make_space(busy, "other")
    found = do(ask(busy, {"hot": "x2"}, space=space)).detail
    assert found["samples"]["reads"] > 1000
    assert found["calibration"]["is_good"] is None  # nodes' counts are of all spaces
    nothing = do(ask(busy, {"hot": "x2"}, space=other)).detail
    assert nothing["recommendation"]["reason"] == "no_samples"


def test_a_simulation_far_from_the_measurement_recommends_nothing(acme):
    fill(acme, worse_by=0.4)
    whatif.recommend(Opener(RECOMMEND, acme.pk), acme.pk)
    advice = whatif.advice_of(acme.pk)
    assert (advice.verdict, advice.reason) == ("nothing", "not_calibrated")
    assert "does not know misses of the kind timeout" in advice.words


def test_without_samples_the_answer_says_what_to_do(acme):
    assert whatif.tenants_to_advise() == []
    found = do(ask(acme, {"hot": "x2"})).detail
    assert found["recommendation"]["reason"] == "no_samples"
    assert "connect one" in whatif.advice_of(acme.pk).words
    services.change_tenant(tenant=acme, samples_enabled=False, actor=SYSTEM)
    assert do(ask(acme, {"hot": "x2"})).detail["recommendation"]["reason"] == "samples_off"
    assert whatif.advice_of(acme.pk).reason == "samples_off"


@pytest.mark.parametrize(
    ("changes", "window_s", "field"),
    [
        ([{"hot": "x1"}], 3600, "changes[0].hot"),
        ([{"hot": "x2"}, {"eviction": "fifo"}], 3600, "changes[1].eviction"),
        ([{"hot": "x2"}], 60, "window"),
        ([{"hot": "x2"}], 15 * 86400, "window"),
        ([], 3600, "changes"),
        ([{"hot": "x2"}] * 13, 3600, "changes"),
    ],
)
def test_a_request_without_sense_is_refused_by_field(acme, changes, window_s, field):
    with pytest.raises(Problem) as refused:
        ask(acme, *changes, window_s=window_s)
    assert refused.value.members["field"] == field
    assert not Job.unscoped.exists()


def test_a_tenant_has_few_unfinished_and_few_kept(acme, monkeypatch):
    first = [ask(acme, {"hot": "x2"}) for _ in range(whatif.MOST_UNFINISHED)]
    with pytest.raises(Problem, match="what_if_jobs"):
        ask(acme, {"hot": "x2"})
    assert ask(make_tenant("other"), {"hot": "x2"})
    monkeypatch.setattr(whatif, "MOST_KEPT", 2)
    for job in first:
        jobs.cancel(job)
    last = ask(acme, {"hot": "x2"})
    kept = set(Job.unscoped.filter(tenant=acme).values_list("pk", flat=True))
    assert kept == {first[-1].pk, first[-2].pk, last.pk}


def test_a_cancelled_job_ends_its_process(busy, monkeypatch):
    children = []
    real = simulating.subprocess.Popen
    monkeypatch.setattr(
        simulating.subprocess,
        "Popen",
        lambda *args, **kwargs: children.append(real(*args, **kwargs)) or children[-1],
    )
    job = ask(busy, {"hot": "x2"}, {"hot": "x4"})
    with jobs.job_run(job.pk) as run:
        real_progress = run.progress

        def progress(fraction, **more):
            if fraction > 0:
                jobs.cancel(Job.unscoped.get(pk=job.pk))
            real_progress(fraction, **more)

        monkeypatch.setattr(run, "progress", progress)
        whatif.work(Opener(WHAT_IF, busy.pk, run), busy.pk, **job.arguments)
    job.refresh_from_db()
    assert (job.state, job.detail) == ("cancelled", {})
    assert children[0].returncode == -9


@pytest.mark.parametrize("name", ["LIMIT_CPU_S", "LIMIT_S"])
def test_a_simulation_beyond_its_limits_ends_and_says_so(busy, monkeypatch, name):
    monkeypatch.setattr(simulating, name, {"LIMIT_S": 0.01}.get(name, 0))
    job = ask(busy, {"hot": "x2"})
    with pytest.raises(jobs.GiveUp, match="choose a shorter window"):
        do(job)
    job.refresh_from_db()
    assert (job.state, job.retry_at) == ("failed", None)


def test_endless_traffic_ends_at_the_limit_of_memory(monkeypatch):
    monkeypatch.setattr(simulating, "LIMIT_BYTES", 400 << 20)
    endless = (BlockRequest(tuple(range(n << 40, (n << 40) + 200)), float(n)) for n in count_up())
    with pytest.raises(simulating.TooMuch):
        simulating.simulate({}, endless)


def test_today_is_what_quota_and_policy_say(acme):
    with tenant_scope(acme.pk):
        RetentionPolicy.objects.update(
            eviction="lru", hot_idle_s=600, cold_ttl_s=7200, max_age_s=3600, promote_window_s=0
        )
    today = whatif.today_of(acme.pk, block_bytes=BLOCK_BYTES)
    assert (today.hot.capacity_bytes, today.hot.policy, today.hot.idle_s) == (
        700 * MIB,
        "lru",
        600,
    )
    assert today.cold is not None
    assert (today.cold.capacity_bytes, today.cold.policy) == (2500 * MIB, "lru")
    assert (today.ttl_s, today.promote.value) == (3600, "never")
    with tenant_scope(acme.pk):
        RetentionPolicy.objects.update(cold_full="refuse")
    cold = whatif.today_of(acme.pk, block_bytes=BLOCK_BYTES).cold
    assert cold is not None
    assert cold.policy == "refuse"
    with tenant_scope(acme.pk):
        RetentionPolicy.objects.update(flush_mode="never")
    assert whatif.today_of(acme.pk, block_bytes=BLOCK_BYTES).cold is None


def test_measured_worth_comes_before_the_engines_speed(busy):
    now = timezone.now().replace(second=0, microsecond=0)
    known = whatif.counted(busy.pk, now - timedelta(hours=3), now)
    spared = whatif.Counted(
        known.start,
        known.end,
        {**known.totals, "spared_tokens": 1000, "spared_gpu_us": 500_000},
        known.misses,
    )
    assert whatif.economics_of(busy.pk, known, MIB).prefill_gpu_s_per_token == 1e-4
    assert whatif.economics_of(busy.pk, spared, MIB).prefill_gpu_s_per_token == 5e-4
    assert Tenant.objects.count() == 1


def test_gets_of_a_cold_hit_are_the_measured_ones(busy):
    now = timezone.now().replace(second=0, microsecond=0)
    for hits, gets in ((1000, 0.25), (99, 1.0)):  # too few to say
        totals = {"requested_blocks": 2000, "requested_tokens": 512_000,
                  "hit_cold_blocks": hits, "cold_requests": 250}  # fmt: skip
        known = whatif.Counted(now - timedelta(hours=3), now, totals, {})
        assert whatif.economics_of(busy.pk, known, MIB).gets_per_hit == gets
