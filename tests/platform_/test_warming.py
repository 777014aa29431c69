"""Contexts before any request: made from prompts, looked up, warmed by an engine and by policies.

The engine here stores what it is asked to; a real one does in tests/vllm/test_made_contexts.py.
"""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from base import sealing
from base.problems import Problem
from catalog import jobs
from catalog.models import Context, Job, NodeSession
from contexts import lookup, making, warm_policies, warming, work
from contexts import services as contexts
from contexts.making import Wanted
from engines import prompts, services
from engines.models import Prompt, Serving, WarmPolicy
from engines.prompts import Tokens
from neve.formats.ids import BlockHasher
from neve.formats.keys import BucketKeys, bucket_of
from neve.formats.parts import PartGroup, PartKind
from storage import hot
from support.engine_api import EngineApi
from support.rows import make_context, make_session, make_space, make_tenant
from tenants.audit import SYSTEM, Actor
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

ANN = Actor("ann", "req-1", id="user:1")
CHUNK = 256
TEXT = "Neve keeps what was computed once. " * 20  # 700 bytes, which are tokens here


class World:
    """A tenant, a space, and an engine that stores the blocks of what it is asked to compute."""

    def __init__(self, api):
        self.api = api
        self.tenant = make_tenant(hot_bytes=1 << 20)
        self.space = make_space(self.tenant, "org/tiny")
        self.engine = services.add_engine(
            tenant=self.tenant, name="gpu", base_url=api.url, model="tiny", spaces=[self.space],
            actor=SYSTEM,
        )  # fmt: skip
        self.stores = 1 << 20  # blocks at most
        api.answers["/v1/completions"] = self.compute

    def compute(self, body):
        salt = body.get("cache_salt", "")
        self.store(making.chain_of(self.space, Tokens(tuple(body["prompt"]), salt))[: self.stores])
        return 200, {"choices": []}

    def store(self, ids):
        for id_ in ids:
            keys = BucketKeys(self.tenant.pk, bucket_of(id_, django_settings.ENV.hot_buckets))
            hot.admin().set(keys.block(self.space.pk, id_), bytes(100), px=60_000)
        hot.hot_tier(self.tenant.pk).commit(self.space.pk, [(id_, 100, CHUNK) for id_ in ids])

    def make(self, name="repo-42", text=TEXT, **fields):
        wanted = Wanted(text=text, salt=fields.pop("salt", ""))
        tokens = making.tokens_of(self.space, wanted)
        return making.make(space=self.space, name=name, tokens=tokens, actor=ANN, **fields)

    def run(self, job):
        """Run a requested job as a worker does."""
        with jobs.job_run(job.pk) as run:
            work.warm(lambda: _Same(run), self.tenant.pk, **job.arguments)
        return Job.unscoped.get(pk=job.pk)

    def warm(self, context, **how):
        return self.run(warming.request(context=context, actor=ANN, **how))


class _Same:
    def __init__(self, run):
        self.run = run

    def __enter__(self):
        return self.run

    def __exit__(self, *_):
        pass


@pytest.fixture
def api():
    with EngineApi() as server:
        yield server


@pytest.fixture
def world(clean_hot, api):
    return World(api)


def refused(kind, do, **how):
    with pytest.raises(Problem) as problem:
        do(**how)
    assert problem.value.kind == kind
    return problem.value


class TestMaking:
    def test_its_ids_are_those_of_nodes(self, world):
        context = world.make(salt="s")
        hasher = BlockHasher(bytes.fromhex(world.space.fingerprint), CHUNK)
        ids = hasher.chain(list(TEXT.encode()), parent=hasher.root(salt=b"s"))
        assert (context.ids(), context.blocks, context.tokens) == (ids, 2, 2 * CHUNK)
        assert (context.state, context.owner) == ("expected", "user:1")

    def test_messages_go_to_the_engine_with_their_options(self, world):
        messages = [{"role": "user", "content": TEXT}]
        options = {"tools": [{"type": "function"}], "add_generation_prompt": False}
        making.tokens_of(world.space, Wanted(messages=messages, options=options))
        assert world.api.bodies("/tokenize") == [{"messages": messages, "model": "tiny", **options}]

    def test_the_next_engine_is_asked_where_one_fails_and_none_after_a_refusal(self, world):
        with EngineApi() as broken:
            services.add_engine(
                tenant=world.tenant, name="broken", base_url=broken.url, model="tiny",
                spaces=[world.space], actor=SYSTEM,
            )  # fmt: skip
            with tenant_scope(world.tenant.pk):
                world.engine.failures = 1  # behind the other one
                world.engine.save()
            broken.answers["/tokenize"] = lambda body: (500, {})
            assert making.tokens_of(world.space, Wanted(text="ab")).ids == (97, 98)
            broken.answers["/tokenize"] = lambda body: (400, {"error": {"message": "too long"}})
            problem = refused(
                "malformed", making.tokens_of, space=world.space, wanted=Wanted(text="a")
            )
        assert problem.detail == "text: the engine refuses it: /tokenize: HTTP 400: too long"
        assert len(world.api.bodies("/tokenize")) == 1

    def test_without_an_engine_only_token_ids_do(self, world):
        services.remove_engine(engine=world.engine, actor=SYSTEM)
        refused("no-engine", world.make)
        tokens = making.tokens_of(world.space, Wanted(tokens=[1] * 300))
        made = making.make(space=world.space, name="n", tokens=tokens, actor=ANN)
        assert made.tokens == CHUNK

    def test_an_engine_of_another_tenant_is_not_asked(self, world):
        other = make_space(make_tenant(), "org/tiny")
        refused("no-engine", making.tokens_of, space=other, wanted=Wanted(text="secret"))
        assert world.api.bodies("/tokenize") == []

    def test_what_is_stored_already_shows_in_the_state(self, world):
        ids = making.chain_of(world.space, Tokens(tuple(TEXT.encode())))
        world.store(ids[:1])
        assert world.make("a").state == "partial"
        world.store(ids)
        assert world.make("b").state == "stored"

    def test_a_prompt_shorter_than_a_chunk_and_a_taken_name_are_refused(self, world):
        problem = refused("malformed", world.make, text="x" * (CHUNK - 1))
        assert problem.members == {"field": "tokens", "chunk_tokens": CHUNK}
        made = world.make()
        assert refused("conflict", world.make).members["id"] == str(made.pk)

    def test_the_prompt_is_sealed_bounded_and_goes_with_its_context(self, world, monkeypatch):
        context = world.make(salt="pepper")
        row = Prompt.unscoped.get()
        assert TEXT[:20].encode() not in bytes(row.sealed)
        with tenant_scope(world.tenant.pk):
            assert prompts.of(context) == Tokens(tuple(TEXT.encode()), "pepper")
        assert TEXT[:9] not in str(list(AuditEvent.unscoped.values_list("after", flat=True)))
        monkeypatch.setattr(prompts, "MOST_BYTES", row.size_bytes + 10)
        refused("limit-reached", world.make, name="two")
        assert Context.unscoped.count() == 1
        contexts.delete(context=context, actor=ANN)
        assert not Prompt.unscoped.exists()

    def test_of_a_canonical_layout_a_node_has_to_tell_the_shards(self, world):
        world.space.identity |= {"layout": "by KV head: 2 layers"}
        tokens = Tokens(tuple(TEXT.encode()))
        refused("conflict", making.chain_of, space=world.space, tokens=tokens)
        with tenant_scope(world.tenant.pk):
            Serving.objects.create(
                engine=world.engine, space=world.space, session=make_session(world.space), shards=4
            )
        hasher = BlockHasher(bytes.fromhex(world.space.fingerprint), CHUNK)
        first = hasher.chain(list(TEXT.encode()), parent=hasher.root())[0]
        assert making.chain_of(world.space, tokens)[:4] == hasher.of_heads(first, 4)
        made = making.make(space=world.space, name="n", tokens=tokens, actor=ANN)
        assert (made.blocks, made.tokens) == (8, 2 * CHUNK)

    def test_in_a_space_with_groups_each_chunk_counts_its_parts(self, world):
        full = PartGroup(PartKind.FULL, None, 16, 100)
        world.space.groups = [full.as_dict(), PartGroup(PartKind.WINDOW, 64, 16, 100).as_dict()]
        assert world.make().blocks == 4

    def test_ids_under_vllms_dram_tier_are_not_ours(self, world):
        world.space.identity |= {"layout": "rows of vLLM 0.32's DRAM tier on cpu"}
        refused("conflict", making.chain_of, space=world.space, tokens=Tokens((1,) * CHUNK))


class TestLookup:
    def look(self, world, text, salt=""):
        return lookup.look_up(world.space, Tokens(tuple(text.encode()), salt))

    def test_it_tells_what_is_stored_and_who_shares_it(self, world):
        longer, shorter = (
            world.make("longer"),
            world.make("shorter", text=TEXT[:CHUNK] + "x" * CHUNK),
        )
        make_context(world.space, "stranger")
        world.store(longer.ids()[:1])
        found = self.look(world, TEXT)
        assert (found.tokens, found.tail_tokens) == (len(TEXT), len(TEXT) - 2 * CHUNK)
        assert (found.hot_tokens, found.cold_tokens, found.lost_tokens) == (CHUNK, 0, CHUNK)
        assert (found.usable_tokens, found.usable_hot_tokens) == (CHUNK, CHUNK)
        assert [(each.id, each.name, each.shared_tokens) for each in found.contexts] == [
            (longer.pk, "longer", 2 * CHUNK), (shorter.pk, "shorter", CHUNK),
        ]  # fmt: skip

    def test_what_nobody_measured_is_unknown(self, world):
        cost = self.look(world, TEXT).cost
        assert (cost.load_s, cost.compute_s, cost.verdict, cost.basis) == (
            *(None, None, None, "unknown"),
        )

    def test_loading_and_computing_cost_what_nodes_measured(self, world):
        world.store(world.make().ids())
        assert self.look(world, TEXT).cost.basis == "unknown"
        hot = {"hot_bytes_per_s": 1000.0, "hot_round_trip_s": 0.1}
        for s_per_token in (0.001, 0.002, 0.009):  # the median counts, and only live nodes do
            session = make_session(world.space, node=f"n{s_per_token}")
            session.speeds = {"prefill_s_per_token": s_per_token, **hot}
            session.save()
        cost = self.look(world, TEXT).cost
        assert cost.load_s == pytest.approx(0.1 + 200 / 1000)
        assert cost.compute_s == pytest.approx(2 * CHUNK * 0.002)
        assert (cost.verdict, cost.nodes) == ("load", 3)
        for session in NodeSession.unscoped.all():
            session.speeds = {"prefill_s_per_token": 0.0005, **hot}
            session.save()
        assert self.look(world, TEXT).cost.verdict == "compute"
        NodeSession.unscoped.update(speeds={"prefill_s_per_token": 0.0005})
        cost = self.look(world, TEXT).cost
        assert (cost.load_s, cost.verdict) == (None, None)
        NodeSession.unscoped.update(ended_at=timezone.now())
        assert self.look(world, TEXT).cost.basis == "unknown"

    def test_another_salt_and_a_short_prompt_share_nothing(self, world):
        world.store(world.make().ids())
        assert self.look(world, TEXT, "salt").usable_tokens == 0
        assert self.look(world, TEXT, "salt").contexts == ()
        short = self.look(world, "short")
        assert (short.tokens, short.tail_tokens, short.lost_tokens) == (5, 5, 0)

    def test_it_costs_one_statement_whatever_there_is(self, world, django_assert_num_queries):
        for n in range(20):
            world.make(f"c{n}")
        tokens = Tokens(tuple(TEXT.encode()))
        with django_assert_num_queries(1):
            assert len(lookup.look_up(world.space, tokens).contexts) == lookup.MOST_SHOWN


class TestWarming:
    def test_an_engine_computes_what_is_not_stored(self, world):
        context = world.make(salt="pepper")
        job = world.warm(context)
        assert (job.state, job.progress, job.blocks) == ("done", 1.0, 2)
        detail = job.detail
        assert (detail["tokens"], detail["stored_tokens"]) == (2 * CHUNK, 2 * CHUNK)
        assert (detail["engine"], detail["gpus"]) == ("gpu", 1)
        assert detail["gpu_s"] == detail["engine_s"] > 0
        (body,) = world.api.bodies("/v1/completions")
        assert body["prompt"] == list(TEXT.encode()[: 2 * CHUNK])
        assert (body["max_tokens"], body["cache_salt"]) == (1, "pepper")
        assert body["kv_transfer_params"] == {"neve": {"context": "repo-42"}}
        context.refresh_from_db()
        assert (context.state, context.size_bytes) == ("stored", 200)
        assert TEXT[:9] not in str((job.detail, job.log, job.arguments))

    def test_an_engine_of_a_prefill_pool_computes_before_others(self, world):
        with EngineApi() as pool:
            pool.answers["/v1/completions"] = world.compute
            services.add_engine(
                tenant=world.tenant, name="far", base_url=pool.url, model="tiny",
                spaces=[world.space], is_prefill=True, actor=SYSTEM,
            )  # fmt: skip
            assert world.warm(world.make()).detail["engine"] == "far"
            assert len(pool.bodies("/v1/completions")) == 1
        assert world.api.bodies("/v1/completions") == []

    def test_nothing_is_computed_where_all_is_stored(self, world):
        context = world.make()
        world.store(context.ids())
        assert world.warm(context).detail["engine_s"] == 0
        assert world.api.bodies("/v1/completions") == []

    def test_without_an_engine_it_is_refused_at_once(self, world):
        context = world.make()
        services.remove_engine(engine=world.engine, actor=SYSTEM)
        refused("no-engine", warming.request, context=context, actor=ANN)
        assert not Job.unscoped.exists()

    def test_a_context_of_blocks_alone_needs_its_tokens(self, world):
        tokens = Tokens(tuple(TEXT.encode()))
        context = make_context(world.space, "node's", making.chain_of(world.space, tokens))
        refused("tokens-unknown", warming.request, context=context, actor=ANN)
        wrong = Tokens(tuple(TEXT.encode()[1:]))
        refused("conflict", warming.request, context=context, tokens=wrong, actor=ANN)
        salted = Tokens(tokens.ids, "salt")
        refused("conflict", warming.request, context=context, tokens=salted, actor=ANN)
        assert world.warm(context, tokens=tokens).state == "done"
        assert warming.require_tokens(context) == tokens  # kept from now on

    def test_a_context_that_grew_needs_its_new_tokens(self, world):
        context = world.make()
        with tenant_scope(world.tenant.pk):
            context.chain = bytes(context.chain) + bytes(16)
            context.save()
        refused("tokens-unknown", warming.request, context=context, actor=ANN)

    def test_a_job_under_way_is_the_answer_to_a_second_request(self, world):
        context = world.make()
        first = warming.request(context=context, actor=ANN)
        assert warming.request(context=context, actor=ANN) == first
        world.run(first)
        assert warming.request(context=context, actor=ANN) != first

    def test_jobs_are_limited(self, world, monkeypatch):
        monkeypatch.setattr(warming, "MOST_WAITING", 1)
        warming.request(context=world.make("a"), actor=ANN)
        refused("limit-reached", warming.request, context=world.make("b"), actor=ANN)

    def test_a_cancelled_job_ends_the_engines_request(self, world):
        context, asked, release = world.make(), threading.Event(), threading.Event()

        def hang(body):
            asked.set()
            release.wait(30)
            return 200, {}

        world.api.answers["/v1/completions"] = hang
        job = warming.request(context=context, actor=ANN)
        real_look = warming._Watch.look

        def look(watch):
            if asked.is_set():
                jobs.cancel(job)
            return real_look(watch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(warming._Watch, "look", look)
            assert world.run(job).state == "cancelled"
        release.set()
        context.refresh_from_db()
        assert context.state == "expected"

    def test_what_the_node_does_not_store_fails_for_good(self, world, monkeypatch):
        monkeypatch.setattr(warming, "STORED_S", 0.1)
        context, world.stores = world.make(), 1
        job = warming.request(context=context, actor=ANN)
        with pytest.raises(jobs.GiveUp, match="256 of 512 tokens are stored"):
            world.run(job)
        job.refresh_from_db()
        assert (job.state, job.retry_at) == ("failed", None)
        context.refresh_from_db()
        assert context.state == "partial"

    def test_a_refusal_is_final_and_a_failure_is_tried_again(self, world):
        context = world.make()
        job = warming.request(context=context, actor=ANN)
        world.api.answers["/v1/completions"] = lambda body: (503, {})
        with pytest.raises(Exception, match="gpu: /v1/completions: HTTP 503"):
            world.run(job)
        job.refresh_from_db()
        assert job.retry_at is not None
        world.api.answers["/v1/completions"] = lambda body: (400, {"message": "too long"})
        with pytest.raises(jobs.GiveUp, match="too long"):
            world.run(job)
        job.refresh_from_db()
        assert job.retry_at is None

    def test_a_context_deleted_meanwhile_is_nothing_to_do(self, world):
        context = world.make()
        job = warming.request(context=context, actor=ANN)
        contexts.delete(context=context, actor=ANN)
        assert world.run(job).state == "done"

    def test_a_prompt_sealed_under_another_secret_is_unknown(self, world, settings):
        context = world.make()
        settings.SECRET_KEY = "another" * 8
        refused("tokens-unknown", warming.request, context=context, actor=ANN)


class TestPolicies:
    def test_a_schedule_warms_by_its_clock(self, world):
        context = world.make()
        policy = warm_policies.add_policy(
            context=context,
            mode="schedule",
            cron="30 7 * * *",
            time_zone="Europe/Berlin",
            actor=ANN,
        )
        assert policy.next_run_at > timezone.now()
        assert warm_policies.run_due(world.tenant.pk) == 0
        self.make_due(policy)
        assert warm_policies.run_due(world.tenant.pk) == 1
        policy.refresh_from_db()
        assert policy.next_run_at > timezone.now()
        assert world.run(policy.last_job).state == "done"

    def test_cron_is_read_in_its_time_zone(self):
        noon = datetime(2027, 3, 27, 12, tzinfo=UTC)
        at = warm_policies.next_moment("30 7 * * *", "Europe/Berlin", noon)
        assert at == datetime(2027, 3, 28, 5, 30, tzinfo=UTC)  # summer time began that night

    @pytest.mark.parametrize(
        ("field", "fields"),
        [
            ("cron", {"mode": "schedule", "cron": "* * * *"}),
            ("cron", {"mode": "schedule", "cron": "61 * * * *"}),
            ("cron", {"mode": "schedule", "cron": "0 0 30 2 *"}),
            ("cron", {"mode": "schedule"}),
            ("cron", {"mode": "keep", "cron": "* * * * *"}),
            ("time_zone", {"mode": "keep", "time_zone": "Mars/North"}),
        ],
    )
    def test_times_that_never_come_are_refused(self, world, field, fields):
        add = warm_policies.add_policy
        problem = refused("malformed", add, context=world.make(), actor=ANN, **fields)
        assert problem.members["field"] == field

    def test_keep_warms_again_what_was_lost_and_leaves_the_rest(self, world):
        context = world.make()
        policy = warm_policies.add_policy(context=context, mode="keep", actor=ANN)
        assert warm_policies.run_due(world.tenant.pk) == 1
        policy.refresh_from_db()
        world.run(policy.last_job)
        self.make_due(policy)
        assert warm_policies.run_due(world.tenant.pk) == 0  # everything is there
        hot.hot_tier(world.tenant.pk).expire(context.ids()[1:])
        self.make_due(policy)
        assert warm_policies.run_due(world.tenant.pk) == 1
        with tenant_scope(world.tenant.pk):  # somebody expired it on purpose
            Context.objects.update(expired_at=timezone.now())
        self.make_due(policy)
        assert warm_policies.run_due(world.tenant.pk) == 0

    def test_repeated_failures_pause_it_and_say_why(self, world):
        policy = warm_policies.add_policy(context=world.make(), mode="keep", actor=ANN)
        services.remove_engine(engine=world.engine, actor=SYSTEM)
        for _ in range(warm_policies.OFF_AFTER + 1):
            warm_policies.run_due(world.tenant.pk)
            self.make_due(policy)
        policy.refresh_from_db()
        assert policy.is_paused
        assert policy.failures == warm_policies.OFF_AFTER
        assert "No healthy engine" in policy.error
        resumed = warm_policies.change_policy(policy=policy, is_paused=False, actor=ANN)
        assert (resumed.failures, resumed.error) == (0, "")
        assert resumed.next_run_at is not None

    def test_a_failed_job_counts_once(self, world, monkeypatch):
        monkeypatch.setattr(warming, "STORED_S", 0.1)
        policy = warm_policies.add_policy(context=world.make(), mode="keep", actor=ANN)
        world.stores = 1
        warm_policies.run_due(world.tenant.pk)
        policy.refresh_from_db()
        with pytest.raises(jobs.GiveUp):
            world.run(policy.last_job)
        self.make_due(policy)
        warm_policies.run_due(world.tenant.pk)
        policy.refresh_from_db()
        assert policy.failures == 1

    def test_policies_request_few_jobs_at_a_time(self, world, monkeypatch):
        monkeypatch.setattr(warm_policies, "AT_ONCE", 2)
        for n in range(4):
            warm_policies.add_policy(context=world.make(f"c{n}"), mode="keep", actor=ANN)
        assert warm_policies.run_due(world.tenant.pk) == 2
        assert work.tenants_with_policies() == []

    def test_they_go_with_their_context_and_need_its_tokens(self, world):
        context = world.make()
        warm_policies.add_policy(context=context, mode="keep", actor=ANN)
        contexts.delete(context=context, actor=ANN)
        assert not WarmPolicy.unscoped.exists()
        bare = make_context(world.space)
        refused("tokens-unknown", warm_policies.add_policy, context=bare, mode="keep", actor=ANN)

    def make_due(self, policy):
        with tenant_scope(policy.tenant_id):
            WarmPolicy.objects.filter(pk=policy.pk).update(
                next_run_at=timezone.now() - timedelta(seconds=1)
            )


def test_sealed_data_opens_for_its_purpose_alone():
    sealed = sealing.seal(b"x", purpose="a")
    assert sealing.unseal(sealed, purpose="a") == b"x"
    with pytest.raises(sealing.Unsealable):
        sealing.unseal(sealed, purpose="b")
