"""One action on many contexts: a preview, its token, and the job, over REST."""

import os
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from cacheapi.teams.contexts.bulk import ARGUMENTS
from catalog import jobs
from catalog.kinds import BULK
from catalog.models import BulkAction, Context, Job, Pin
from catalog.targets import Opener
from contexts import bulk, expiry, weighing
from engines import prompts
from engines.models import Engine
from engines.prompts import Tokens
from events.models import Event
from neve.formats.parts import PartGroup, PartKind
from neve.index.tier import Location
from support.rows import make_context, make_engine, make_key, make_person, make_tenant
from support.tenant_world import SIZE, World
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

PREVIEW, BULK_PATH = "/api/v1/contexts/bulk/preview", "/api/v1/contexts/bulk"


@pytest.fixture
def world(clean_hot, valkey_bus):
    return World(flush_mode="never")


@pytest.fixture
def team(world):
    from .conftest import Caller

    return Caller(make_key(world.tenant, "team"))


@pytest.fixture
def preview(team):
    def send(action, filter_, *, by=team, status=200, **body):
        answer = by.send("post", PREVIEW, {"action": action, "filter": filter_, **body})
        assert answer.status_code == status, answer.content
        return answer.json()

    return send


@pytest.fixture
def take(team):
    def send(token, *, by=team, status=202):
        answer = by.send("post", BULK_PATH, {"token": token})
        assert answer.status_code == status, answer.content
        return answer.json()

    return send


def run(job_id):
    """As a worker does."""
    with jobs.job_run(job_id) as running:
        bulk.work(Opener(BULK, running.job.tenant_id, running), running.job.tenant_id,
                  **running.job.arguments)  # fmt: skip
    return Job.unscoped.get(pk=job_id)


def stored(world, ids):
    return sum(isinstance(answer, Location) for answer in world.tier.match(ids))


class TestPreview:
    def test_it_counts_distinct_blocks_and_those_that_others_hold(self, world, preview):
        common, middle = world.store(2), world.store(1)
        world.record("job-1", common + middle + world.store(1))
        world.record("job-2", common + middle + world.store(2))
        world.record("other", common + world.store(1))
        found = preview("expire", {"search": "job"})
        assert found["contexts"] == 2
        assert (found["blocks"], found["bytes"]) == (6, 6 * SIZE)
        assert (found["shared_blocks"], found["shared_bytes"]) == (2, 2 * SIZE)
        assert (found["freed_blocks"], found["freed_bytes"]) == (4, 4 * SIZE)
        assert (found["is_estimate"], found["pinned_by_others"]) == (False, 0)
        assert preview("delete", {"search": "job"})["freed_blocks"] == 0

    def test_bytes_are_of_stored_blocks_and_expired_contexts_hold_none(self, world, preview):
        common = world.store(1)
        world.record("job-1", [*common, os.urandom(16)])
        gone = world.record("gone", common + world.store(1))
        Context.unscoped.filter(pk=gone.pk).update(expired_at=timezone.now())
        found = preview("expire", {"search": "job"})
        assert (found["blocks"], found["bytes"], found["shared_blocks"]) == (2, SIZE, 0)
        assert preview("delete", {"name": "gone"})["blocks"] == 0

    def test_many_blocks_are_weighed_by_a_sample(self, world, preview, monkeypatch):
        monkeypatch.setattr(weighing, "MOST_ASKED", 10)
        common = world.store(10)
        for n in range(5):
            world.record(f"job-{n}", common + world.store(4))
        world.record("other", common)
        found = preview("expire", {"search": "job"})
        assert (found["blocks"], found["shared_blocks"], found["is_estimate"]) == (30, 10, True)
        assert found["bytes"] == 30 * SIZE  # since all blocks have one size
        assert found["shared_bytes"] == 10 * SIZE

    def test_every_part_of_a_space_with_kv_groups_counts(self, world, preview):
        groups = [PartGroup(PartKind.FULL, None, 16, 40), PartGroup(PartKind.WINDOW, 300, 16, 20)]
        world.space.groups = [group.as_dict() for group in groups]
        world.space.save()
        head = [os.urandom(16) for _ in range(3)]
        world.record("job-1", head)
        world.record("other", head[:1])
        found = preview("expire", {"name": "job-1"})
        assert (found["blocks"], found["shared_blocks"]) == (6, 2)

    @pytest.mark.parametrize("most_named", [500, 5])
    def test_weights_agree_with_sets_of_ids(self, world, monkeypatch, most_named):
        """Random trees of chains, some of them chosen."""
        monkeypatch.setattr(weighing, "MOST_NAMED", most_named)
        import random

        dice = random.Random(14)
        chains = [[os.urandom(16)] for _ in range(3)]
        made = []
        for n in range(60):
            base = dice.choice(chains)
            chain = base[: dice.randint(1, len(base))] + [
                os.urandom(16) for _ in range(dice.randint(0, 3))
            ]
            chains.append(chain)
            made.append((make_context(world.space, f"c{n}", chain), set(chain)))
        for _ in range(10):
            mine = dice.sample(range(60), dice.randint(0, 60))
            own = set().union(*(made[n][1] for n in mine))
            rest = set().union(*(ids for n, (_, ids) in enumerate(made) if n not in mine))
            weight = weighing.weigh(world.tenant.pk, [made[n][0].pk for n in mine])
            assert (weight.blocks, weight.shared_blocks) == (len(own), len(own & rest))
            others = [ids for n, (_, ids) in enumerate(made) if n not in mine]
            assert weight.sharers == sum(not ids.isdisjoint(own) for ids in others)

    def test_filters_are_those_of_the_list_and_as_strict(self, world, preview, team):
        world.record("a", world.store(1), label="x")
        world.record("b", world.store(1))
        for filter_, contexts in (
            ({"label": "x"}, 1),
            ({"pinned": False, "search": "a"}, 1),
            ({"pinned": "false"}, 2),
            ({"space": world.space.pk}, 2),
            ({"tenant": world.tenant.slug, "name": "nobody"}, 0),
        ):
            assert preview("delete", filter_)["contexts"] == contexts, filter_
        for filter_, field in (
            ({"lable": "x"}, "filter.lable"),
            ({"pinned": "maybe"}, "filter.pinned"),
            ({"space": -1}, "filter.space"),
            ({"label": " "}, "filter.label"),
            ({"label": ["x"]}, "filter.label"),
            ({"labels": "=x"}, "filter.labels"),
            ({"glob": "*a" * 20}, "filter.glob"),
            ({"tenant": "nobody", "label": "x"}, "filter.tenant"),
        ):
            assert preview("delete", filter_, status=400)["field"] == field, filter_

    def test_all_contexts_of_a_tenant_are_chosen_only_by_saying_so(self, world, preview):
        world.record("a", world.store(1))
        assert preview("delete", {}, status=400)["field"] == "every"
        assert preview("delete", {"tenant": world.tenant.slug}, status=400)["field"] == "every"
        assert preview("delete", {"label": "x"}, every=True, status=400)["field"] == "every"
        assert preview("delete", {}, every=True)["contexts"] == 1

    def test_arguments_are_those_of_the_action(self, preview):
        for action, arguments, field in (
            ("pin", {}, "arguments.until"),
            ("pin", {"for": "2x"}, "arguments.for"),
            ("extend", {}, "arguments.for"),
            ("expire", {"for": "2h"}, "arguments.for"),
            ("unpin", {"pin": 5}, "arguments.pin"),
            ("label", {}, "arguments.labels"),
            ("label", {"labels": {"9": "x"}}, "arguments.labels"),
            ("promote", {}, "action"),
            ("warm", {"tokens": [1]}, "arguments.tokens"),
        ):
            refused = preview(action, {"label": "x"}, arguments=arguments, status=400)
            assert refused["field"] == field, action
        assert preview("unpin", {"label": "x"}, arguments={"all": True}, status=403)
        assert set(ARGUMENTS) == set(bulk.ACTIONS)

    def test_one_tenant_at_a_time(self, world, preview, operator):
        make_tenant("other")
        refused = preview("delete", {"label": "x"}, by=operator, status=400)
        assert refused["field"] == "filter.tenant"
        filter_ = {"label": "x", "tenant": "other"}
        assert preview("delete", filter_, by=operator)["contexts"] == 0

    def test_its_owner_has_some_at_most_and_those_that_are_over_go(self, world, preview):
        first = preview("delete", {"label": "x"})["token"]
        for _ in range(bulk.MOST_PREVIEWS):
            preview("delete", {"label": "x"})
        assert not BulkAction.unscoped.filter(pk=first).exists()
        assert BulkAction.unscoped.count() == bulk.MOST_PREVIEWS
        BulkAction.unscoped.update(expires_at=timezone.now())
        preview("delete", {"label": "x"})
        assert BulkAction.unscoped.count() == 1

    def test_a_set_beyond_the_limit_is_refused(self, world, preview, monkeypatch):
        monkeypatch.setattr(bulk, "MOST_CONTEXTS", 1)
        for name in "ab":
            world.record(name, world.store(1))
        assert preview("delete", {}, every=True, status=409)["limit"] == "bulk_contexts"


class TestToken:
    def test_it_is_its_owners_alone(self, world, preview, take, team, operator):
        token = preview("delete", {"label": "x"})["token"]
        for tenant in (world.tenant, make_tenant()):
            stranger = type(team)(make_key(tenant, "team"))
            assert take(token, by=stranger, status=404)["field"] == "token"
        take(token, by=operator, status=404)
        take(str(world.space.fingerprint), status=400)

    def test_it_ends(self, preview, take):
        token = preview("delete", {"label": "x"})["token"]
        BulkAction.unscoped.update(expires_at=timezone.now() - timedelta(seconds=1))
        assert take(token, status=409)["type"].endswith("preview-expired")

    def test_it_starts_one_job_however_often_it_is_sent(self, world, preview, take):
        world.record("a", world.store(1))
        token = preview("delete", {"name": "a"})["token"]
        job = take(token)
        assert (job["kind"], job["state"]) == ("bulk", "queued")
        assert take(token)["id"] == job["id"]
        assert Job.unscoped.filter(kind="bulk").count() == 1
        event = AuditEvent.unscoped.get(action="context.bulk")
        assert event.after["filter"] == {"name": "a"}
        assert (event.after["action"], event.after["contexts"]) == ("delete", 1)

    def test_a_tenant_has_a_limit_of_unfinished_jobs(self, preview, take, monkeypatch):
        monkeypatch.setattr(bulk, "MOST_JOBS", 1)
        take(preview("delete", {"label": "x"})["token"])
        assert take(preview("delete", {"label": "x"})["token"], status=409)["limit"] == "bulk_jobs"

    def test_people_who_may_only_look_get_neither(self, world):
        from django.test import Client

        viewer = Client()
        viewer.force_login(make_person("vera", **{world.tenant.slug: "viewer"}))
        for path in (PREVIEW, BULK_PATH):
            answer = viewer.post(path, {}, content_type="application/json")
            assert answer.status_code == 403


class TestJob:
    @pytest.fixture
    def act(self, preview, take):
        def send(action, filter_, **arguments):
            return run(take(preview(action, filter_, arguments=arguments)["token"])["id"])

        return send

    def test_it_pins_each_context_as_the_caller_would(self, world, act, team):
        for name in ("job-1", "job-2", "other"):
            world.record(name, world.store(2))
        job = act("pin", {"search": "job"}, **{"for": "2h"}, reason="night run")
        assert job.state == "done"
        assert job.detail == {
            **{"action": "pin", "contexts": 2, "looked_at": 2, "done": 2, "refused": {}},
        }
        pins = Pin.unscoped.select_related("context")
        assert {pin.context.name: pin.reason for pin in pins} == {
            "job-1": "night run", "job-2": "night run",
        }  # fmt: skip
        assert len({(pin.until, pin.owner) for pin in pins}) == 1
        assert AuditEvent.unscoped.filter(action="context.pin").count() == 2
        assert team.get("/api/v1/contexts?pinned=true").json()["results"][0]["pinned_until"]
        assert act("unpin", {"search": "job"}).detail["done"] == 2
        assert not Pin.unscoped.exists()

    def test_it_counts_refusals_by_their_reason_and_names_them(self, world, act):
        world.record("job-1", world.store(1))
        world.record("job-2", [os.urandom(16)])  # stored nowhere
        pinned = world.record("job-3", world.store(1))
        job = act("pin", {"search": "job"}, **{"for": "1h"})
        assert (job.detail["done"], job.detail["refused"]) == (2, {"context-gone": 1})
        assert any("job-2" in line["words"] for line in job.log)
        with tenant_scope(world.tenant.pk):
            Pin.objects.filter(context=pinned).update(owner="user:99")
        job = act("expire", {"search": "job"})
        assert job.detail["refused"] == {"pinned-by-others": 1}
        assert job.detail["done"] == 2

    def test_it_expires_and_frees_what_the_preview_said(self, world, preview, take):
        common, own = world.store(1), world.store(2)
        world.record("job-1", common + own[:1])
        world.record("job-2", common + own[1:])
        world.record("other", common)
        found = preview("expire", {"search": "job"})
        assert run(take(found["token"])["id"]).detail["done"] == 2
        assert found["freed_blocks"] == 2
        assert (stored(world, own), stored(world, common)) == (0, 1)

    def test_what_another_one_pinned_does_not_leave_nor_count(self, world, preview, take, operator):
        common = world.store(1)
        world.record("job-1", common + world.store(2))
        pinned = world.record("job-2", common + world.store(4))
        world.record("other", common)
        with tenant_scope(world.tenant.pk):
            until = timezone.now() + timedelta(hours=1)
            Pin.objects.create(context=pinned, owner="user:99", until=until)
        filter_ = {"search": "job", "tenant": world.tenant.slug}
        assert preview("expire", filter_, by=operator)["freed_blocks"] == 6
        found = preview("expire", filter_)
        assert (found["contexts"], found["pinned_by_others"], found["freed_blocks"]) == (2, 1, 2)
        assert (found["shared_blocks"], found["sharers"]) == (1, 2)
        before = world.tier.usage().hot_bytes
        assert run(take(found["token"])["id"]).detail["refused"] == {"pinned-by-others": 1}
        assert before - world.tier.usage().hot_bytes == found["freed_hot_bytes"] == 2 * SIZE

    def test_contexts_are_chosen_by_what_they_begin_with_and_by_their_ids(self, world, preview):
        head = world.store(2)
        one = world.record("a", head + world.store(1))
        world.record("b", head + world.store(1))
        other = world.record("c", world.store(1))
        under = f"2-{head[1].hex()}"
        assert preview("expire", {"under": under})["freed_blocks"] == 4
        assert preview("expire", {"ids": f"{one.pk},{other.pk}"})["contexts"] == 2
        assert preview("expire", {"under": "2"}, status=400)["field"] == "filter.under"
        assert preview("expire", {"ids": "x" * 36}, status=400)["field"] == "filter.ids"

    def test_a_warm_of_each_is_requested(self, world, act):
        world.record("job-1", world.store(1))
        job = act("warm", {"search": "job"})
        assert job.detail["refused"] == {"tokens-unknown": 1}

    def test_the_preview_of_a_warm_says_what_would_be_refused(self, world, preview):
        known = world.record("job-1", world.store(1))
        world.record("job-2", world.store(2))
        with tenant_scope(world.tenant.pk), transaction.atomic():
            prompts.keep(known, Tokens((1,) * 256))
        found = preview("warm", {"search": "job"})
        assert found["refused"] == {"tokens-unknown": 1, "no-engine": 1}
        assert (found["contexts"], found["blocks"]) == (2, 0)
        engine = make_engine(world.space)
        Engine.unscoped.filter(pk=engine.pk).update(state="healthy")
        found = preview("warm", {"search": "job"})
        assert found["refused"] == {"tokens-unknown": 1}
        assert found["blocks"] == 1

    def test_it_deletes_extends_and_labels(self, world, act):
        world.record("job-1", world.store(1))
        assert act("extend", {"name": "job-1"}, **{"for": "7d"}).detail["done"] == 1
        assert Context.unscoped.get().extended_until is not None
        labels = {"team": "blue", "stage": "test"}
        assert act("label", {"name": "job-1"}, label="x", labels=labels).detail["done"] == 1
        assert act("label", {"labels": "team=blue"}, labels={"stage": None}).detail["done"] == 1
        changed = Context.unscoped.get()
        assert (changed.label, changed.labels) == ("x", {"team": "blue"})
        at = (timezone.now() + timedelta(hours=1)).isoformat()
        assert act("expire", {"label": "x"}, at=at).detail["done"] == 1
        assert Context.unscoped.get().expires_at is not None
        assert act("delete", {"name": "job-1"}).detail["done"] == 1
        assert not Context.unscoped.exists()

    def test_it_acts_on_the_contexts_of_the_preview_and_no_others(self, world, preview, take):
        for name in ("job-1", "job-2", "job-3"):
            world.record(name, world.store(1))
        token = preview("delete", {"search": "job"})["token"]
        world.record("job-4", world.store(1))  # matches the filter too late
        world.record("job-2", world.store(1))  # used meanwhile
        Context.unscoped.get(name="job-3").delete()
        job = run(take(token)["id"])
        assert (job.detail["done"], job.detail["refused"]) == (1, {"changed": 1, "deleted": 1})
        assert set(Context.unscoped.values_list("name", flat=True)) == {"job-2", "job-4"}

    def test_it_takes_turns_and_goes_on_where_it_was(self, world, preview, take, monkeypatch):
        monkeypatch.setattr(bulk, "AT_ONCE", 2)
        monkeypatch.setattr(bulk, "SLICE_S", 0)
        for n in range(5):
            world.record(f"job-{n}", world.store(1))
        job_id = take(preview("delete", {"search": "job"})["token"])["id"]
        states = [run(job_id) for _ in range(3)]
        assert [job.state for job in states] == ["queued", "queued", "done"]
        assert [round(job.progress, 1) for job in states] == [0.4, 0.8, 1.0]
        assert states[-1].detail["done"] == 5

    def test_after_a_crash_it_goes_on_and_removes_what_was_left(
        self, world, preview, take, monkeypatch
    ):
        """Killed after the rows of a batch are expired, before their blocks are removed."""
        monkeypatch.setattr(bulk, "AT_ONCE", 2)
        ids = [world.store(1) for _ in range(4)]
        for n, chain in enumerate(ids):
            world.record(f"job-{n}", chain)
        job_id = take(preview("expire", {"search": "job"})["token"])["id"]
        remove, calls = expiry._remove, []

        def dies_at_the_second(ended):
            calls.append(ended)
            if len(calls) == 2:
                raise RuntimeError("killed")
            return remove(ended)

        monkeypatch.setattr(expiry, "_remove", dies_at_the_second)
        with pytest.raises(RuntimeError):
            run(job_id)
        all_ids = [id_ for chain in ids for id_ in chain]
        assert Context.unscoped.exclude(expired_at=None).count() == 2
        assert stored(world, all_ids) == 3
        job = run(job_id)
        assert (job.state, job.detail["done"]) == ("done", 4)
        assert stored(world, all_ids) == 0

    def test_contexts_that_expire_together_remove_what_is_theirs(self, world, preview, take):
        """Also blocks that only contexts of the set share, and none that others hold."""
        common, shared, own = world.store(1), world.store(1), world.store(3)
        world.record("job-1", common + shared + own[:1])
        world.record("job-2", common + shared + own[1:2])
        world.record("job-3", own[2:])
        world.record("other", common)
        found = preview("expire", {"search": "job"})
        assert (found["freed_blocks"], found["shared_blocks"]) == (4, 1)
        assert run(take(found["token"])["id"]).detail["done"] == 3
        assert (stored(world, shared + own), stored(world, common)) == (0, 1)
        events = Event.unscoped.filter(kind="context.expired")
        assert sum(event.data["removed_blocks"] for event in events) == 4

    def test_one_that_expired_before_the_preview_is_left_alone(self, world, act):
        gone = world.record("job-1", world.store(1))
        Context.unscoped.filter(pk=gone.pk).update(expired_at=timezone.now())
        assert act("expire", {"name": "job-1"}).detail["refused"] == {"unchanged": 1}

    def test_it_ends_when_it_is_cancelled(self, world, preview, take, monkeypatch):
        monkeypatch.setattr(bulk, "AT_ONCE", 1)
        for n in range(3):
            world.record(f"job-{n}", world.store(1))
        job_id = take(preview("delete", {"search": "job"})["token"])["id"]
        delete = bulk.ACTIONS["delete"]

        def cancels(context, actor, arguments):
            delete(context, actor, arguments)
            jobs.cancel(Job.unscoped.get(pk=job_id))

        monkeypatch.setitem(bulk.ACTIONS, "delete", cancels)
        assert run(job_id).state == "cancelled"
        assert Context.unscoped.count() == 2

    def test_its_team_cancels_it(self, world, preview, take, team):
        job = take(preview("delete", {"label": "x"})["token"])
        answer = team.send("post", f"/api/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")

    def test_an_outage_of_the_hot_tier_fails_the_attempt_and_refuses_nothing(
        self, world, preview, take, clean_hot, monkeypatch
    ):
        from base.problems import Problem

        world.record("job-1", world.store(1))
        job_id = take(preview("expire", {"name": "job-1"})["token"])["id"]

        def away(ended):
            raise Problem("hot-tier-unavailable", "away")

        monkeypatch.setattr(expiry, "_remove", away)
        with pytest.raises(Problem):
            run(job_id)
        job = Job.unscoped.get(pk=job_id)
        assert (job.state, job.retry_at is not None) == ("failed", True)
        assert BulkAction.unscoped.get().counts == {}

    def test_operators_end_the_pins_of_everybody(self, world, preview, take, operator):
        made = world.record("job-1", world.store(1))
        with tenant_scope(world.tenant.pk):
            until = timezone.now() + timedelta(hours=1)
            Pin.objects.create(context=made, owner="user:99", owner_name="x", until=until)
        filter_ = {"tenant": world.tenant.slug, "name": "job-1"}
        found = preview("unpin", filter_, by=operator, arguments={"all": True})
        assert found["pinned_by_others"] == 1
        assert run(take(found["token"], by=operator)["id"]).detail["done"] == 1
        assert not Pin.unscoped.exists()
