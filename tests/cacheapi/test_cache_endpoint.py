"""/cache/v1 as a node sees it: good answers, and refusals that name what is wrong."""

import copy
import os
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.test import Client
from django.utils import timezone

from catalog import sessions
from catalog.models import Context, KeptRequest, NodeSession, Space, UsageRollup
from catalog.recent import NAMES
from engines.models import Engine
from neve.engine import params
from neve.formats.space import SpaceIdentity
from neve.index.tier import HotTier
from neve.node.requests import Kept, RequestRecord
from support.rows import make_context, make_key, make_segment, make_space, make_tenant
from tenants import services
from tenants.audit import SYSTEM
from tenants.keys import find_key
from tenants.models import ApiKey, AuditEvent, Quota
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def opened(clean_hot, node, handshake):
    answer = node.send("post", "/cache/v1/sessions", handshake)
    assert answer.status_code == 201, answer.content
    return answer.json()


def refused(answer, status, kind):
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"].endswith(f"/{kind}")
    assert problem["title"]
    assert problem["detail"]
    return problem


class TestHandshake:
    def test_the_answer_holds_all_that_a_node_needs(self, opened, tenant, handshake, settings):
        identity = SpaceIdentity.from_dict(handshake["identity"])
        space = opened["space"]
        assert UUID(opened["session"])
        assert opened["tenant"] == {"id": tenant.pk, "slug": "acme"}
        assert space["chunk_tokens"] == 256
        fingerprint = identity.fingerprint(tenant_id=tenant.pk, chunk_tokens=256)
        assert space["fingerprint"] == fingerprint.hex()
        assert opened["buckets"] == 1
        assert opened["valkey"]["seeds"] == settings.ENV.hot_seeds
        assert opened["valkey"]["tls"] is False
        key = ApiKey.unscoped.get(role="node")
        assert opened["valkey"]["username"] == f"t{tenant.pk}.k{key.pk}"
        assert "X-Amz-Signature=" in opened["s3"].pop("probe")
        assert opened["s3"] == {
            "endpoint": settings.ENV.s3_endpoint,
            "bucket": "neve-tests",
            "prefix": f"v1/t{tenant.pk}/",
        }
        assert opened["policy"] == {"flush_after_s": 0, "hot_idle_s": None, "cold_ttl_s": None}
        assert opened["heartbeat_s"] == 1

    def test_a_tenant_has_so_many_spaces(self, opened, node, handshake, settings):
        settings.ENV = replace(settings.ENV, space_limit=1)
        assert node.send("post", "/cache/v1/sessions", handshake).status_code == 201
        other = handshake | {"identity": handshake["identity"] | {"model": "another"}}
        problem = refused(node.send("post", "/cache/v1/sessions", other), 409, "limit-reached")
        assert (problem["limit"], problem["most"]) == ("space_limit", 1)

    def test_kv_is_stored_with_loss_only_where_an_operator_allows_it(
        self, opened, node, handshake, operator
    ):
        lossy = handshake | {"identity": handshake["identity"] | {"codec": "int8"}}
        problem = refused(node.send("post", "/cache/v1/sessions", lossy), 409, "fingerprint-clash")
        assert (problem["field"], problem["expected"], problem["got"]) == ("codec", "none", "int8")
        policy, model = "/api/v1/policies/acme", handshake["identity"]["model"]
        wrong = operator.send("patch", policy, {"lossy_codecs": f"{model}=int2"})
        assert wrong.status_code == 400
        assert "MODEL=int8|fp8|int4" in wrong.content.decode()
        for allowed in (f"{model}=fp8", "another=int8"):
            assert operator.send("patch", policy, {"lossy_codecs": allowed}).status_code == 200
            refused(node.send("post", "/cache/v1/sessions", lossy), 409, "fingerprint-clash")
        allowed = f"another=fp8, {model[:3]}*=int8"
        assert operator.send("patch", policy, {"lossy_codecs": allowed}).status_code == 200
        answer = node.send("post", "/cache/v1/sessions", lossy)
        assert answer.status_code == 201, answer.content
        assert answer.json()["space"]["fingerprint"] != opened["space"]["fingerprint"]
        named = lossy | {"space": opened["space"]["name"]}
        problem = refused(node.send("post", "/cache/v1/sessions", named), 409, "fingerprint-clash")
        assert problem["field"] == "codec"

    def test_a_policy_that_withdraws_a_codec_ends_the_sessions_that_store_with_it(
        self, opened, node, handshake, operator, valkey_bus
    ):
        policy = "/api/v1/policies/acme"
        lossy = handshake | {"identity": handshake["identity"] | {"codec": "int8"}}
        lossy |= {"instance": "a"}
        assert operator.send("patch", policy, {"lossy_codecs": "*=int8"}).status_code == 200
        session = node.send("post", "/cache/v1/sessions", lossy).json()

        def topology(of):
            answer = node.send("post", f"/cache/v1/sessions/{of['session']}/heartbeat", {"seq": 1})
            return answer.json()["topology"]

        assert topology(session) == session["topology"]
        assert operator.send("patch", policy, {"lossy_codecs": ""}).status_code == 200
        assert topology(session) != session["topology"]  # nodes make a new handshake
        assert topology(opened) == opened["topology"]  # not those that store exactly
        for _ in range(2):  # an engine asks again
            refused(node.send("post", "/cache/v1/sessions", lossy), 409, "fingerprint-clash")
        assert NodeSession.unscoped.get(pk=session["session"]).ended_at is not None
        assert NodeSession.unscoped.get(pk=opened["session"]).ended_at is None
        event = AuditEvent.unscoped.get(action="session.refuse")
        assert event.after == {
            **{"node": lossy["node"], "kind": "fingerprint-clash", "field": "codec"},
            **{"expected": "none", "got": "int8"},
        }

    def test_refused_handshakes_leave_a_line_in_the_audit_trail(
        self, opened, node, handshake, monkeypatch
    ):
        monkeypatch.setattr(sessions, "REFUSALS_MOST", 2)
        other = handshake | {"space": opened["space"]["name"]}
        other |= {"identity": handshake["identity"] | {"kv_dtype": "fp8"}}
        for name in ("n1", "n1", "n2", "n3"):  # of a hostile tenant, so many
            refused(
                node.send("post", "/cache/v1/sessions", other | {"node": name}),
                *(409, "fingerprint-clash"),
            )
        told = [each.after for each in AuditEvent.unscoped.filter(action="session.refuse")]
        assert sorted((each["node"], each["field"]) for each in told) == [
            *(("n1", "kv_dtype"), ("n2", "kv_dtype")),
        ]

    def test_an_engine_may_announce_its_address(self, opened, node, handshake, tenant):
        address = {"url": "http://gpu-07.example:8000/v1/", "model": "tiny", "gpus": 4}
        body = handshake | {"engine": handshake["engine"] | address}
        answer = node.send("post", "/cache/v1/sessions", body).json()
        engine = Engine.unscoped.get()
        assert (engine.tenant_id, engine.source, engine.base_url, engine.model, engine.gpus) == (
            *(tenant.pk, "announced", "http://gpu-07.example:8000", "tiny", 4),
        )
        assert str(engine.servings.model.unscoped.get().session_id) == answer["session"]
        session = NodeSession.unscoped.get(pk=answer["session"])
        assert session.engine == handshake["engine"]
        for wrong in ({"url": "http://a"}, {"model": "a"}, address | {"url": "ftp://a"}):
            body = handshake | {"engine": handshake["engine"] | wrong}
            refused(node.send("post", "/cache/v1/sessions", body), 400, "malformed")

    def test_the_valkey_user_works_at_once(self, opened, clean_hot, tenant):
        address = opened["valkey"]
        with clean_hot.client(username=address["username"], password=address["password"]) as client:
            assert HotTier(client.execute_command, tenant.pk).usage().quota_hot_bytes > 0

    def test_a_valkey_that_forgot_its_users_gets_them_again(
        self, opened, clean_hot, node, handshake
    ):
        clean_hot.wipe()
        again = node.send("post", "/cache/v1/sessions", handshake).json()
        address = again["valkey"]
        with clean_hot.client(username=address["username"], password=address["password"]) as client:
            client.ping()
        assert again["session"] != opened["session"]

    def test_an_unreachable_hot_tier_is_503(self, node, handshake, settings):
        settings.ENV = replace(settings.ENV, hot_url="valkey://127.0.0.1:1/0")
        answer = node.send("post", "/cache/v1/sessions", handshake)
        refused(answer, 503, "hot-tier-unavailable")
        assert answer["Retry-After"]
        assert not NodeSession.unscoped.exists()

    def test_a_clash_names_the_field_and_both_values(self, clean_hot, node, handshake):
        body = copy.deepcopy(handshake) | {"space": "mine"}
        assert node.send("post", "/cache/v1/sessions", body).status_code == 201
        body["identity"]["kv_dtype"] = "fp8"
        answer = node.send("post", "/cache/v1/sessions", body | {"node": "gpu-08"})
        problem = refused(answer, 409, "fingerprint-clash")
        assert (problem["field"], problem["expected"], problem["got"]) == (
            *("kv_dtype", "bfloat16", "fp8"),
        )

    def test_a_tenant_over_its_node_limit_is_refused(self, clean_hot, node, tenant, handshake):
        services.change_tenant(tenant=tenant, name="A", node_limit=1, is_active=True, actor=SYSTEM)
        assert node.send("post", "/cache/v1/sessions", handshake).status_code == 201
        assert node.send("post", "/cache/v1/sessions", handshake).status_code == 201
        other = node.send("post", "/cache/v1/sessions", handshake | {"node": "gpu-08"})
        assert refused(other, 409, "node-limit")["node_limit"] == 1


class TestCredentials:
    def test_every_wrong_key_gets_the_same_answer(self, node, tenant, handshake):
        good = make_key(tenant, "node")
        _, prefix, secret = good.split("_")
        revoked = make_key(tenant, "node")
        services.revoke_key(key=find_key(revoked), actor=SYSTEM)
        bodies = set()
        for wrong in (f"neve_{prefix}_wrong", f"neve_unknown_{secret}", revoked, "nonsense"):
            client = Client(headers={"Authorization": f"Bearer {wrong}"})
            answer = client.post("/cache/v1/sessions", handshake, content_type="application/json")
            refused(answer, 401, "unauthorized")
            assert answer["WWW-Authenticate"].startswith("Bearer")
            bodies.add(answer.content)
        assert len(bodies) == 1

    def test_no_key_is_401_and_another_role_403(self, team, operator, handshake):
        answer = Client().post("/cache/v1/sessions", handshake, content_type="application/json")
        refused(answer, 401, "unauthorized")
        for caller in (team, operator):
            refused(caller.send("post", "/cache/v1/sessions", handshake), 403, "forbidden")

    def test_a_failed_request_leaves_no_scope_behind(self, node, handshake):
        from catalog.models import Space
        from tenants.scope import OutsideTenantScope

        node.send("post", "/cache/v1/sessions", {})
        with pytest.raises(OutsideTenantScope):
            Space.objects.count()


MISSING = object()


def changed(body, path, value):
    body = copy.deepcopy(body)
    *way, last = path.split(".")
    inner = body
    for step in way:
        inner = inner[step]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("node", MISSING),
        ("node", ""),
        ("node", 7),
        ("node", "n" * 101),
        ("node", None),
        ("engine", "vllm"),
        ("engine.version", MISSING),
        ("engine.extra", "x"),
        ("identity", MISSING),
        ("identity", []),
        ("identity.model", MISSING),
        ("identity.model", 5),
        ("identity.bytes_per_token", "4096"),
        ("identity.bytes_per_token", 0),
        ("identity.bytes_per_token", True),
        ("identity.tp_rank", 1),
        ("identity.colour", "red"),
        ("space", 5),
        ("space", ""),
        ("max_chunk_tokens", 0),
        ("max_chunk_tokens", "256"),
        ("max_chunk_tokens", 1.5),
        ("max_chunk_tokens", None),
        ("surprise", 1),
    ],
)
def test_each_malformed_member_of_a_handshake_is_named(node, handshake, path, value):
    answer = node.send("post", "/cache/v1/sessions", changed(handshake, path, value))
    problem = refused(answer, 400, "malformed")
    assert problem["field"] == path
    assert path in problem["detail"]


def test_a_body_that_is_no_json_object_is_malformed(node):
    for raw in ("", "{", "[]", "5", '{"node": NaN}', "[" * 100_000):
        answer = node.post("/cache/v1/sessions", raw, content_type="application/json")
        refused(answer, 400, "malformed")


def test_other_media_and_huge_bodies_are_refused(node):
    answer = node.post("/cache/v1/sessions", "a=1", content_type="text/plain")
    refused(answer, 415, "unsupported-media-type")
    huge = b'{"node": "' + b"x" * (5 << 20) + b'"}'
    answer = node.post("/cache/v1/sessions", huge, content_type="application/json")
    refused(answer, 413, "too-large")


class TestHeartbeat:
    def beat(self, node, opened, **body):
        path = f"/cache/v1/sessions/{opened['session']}/heartbeat"
        return node.send("post", path, {"seq": 1, **body})

    def test_it_counts_and_answers_with_what_may_change(self, opened, node, tenant, valkey_bus):
        answer = self.beat(
            node,
            opened,
            counters={"requested_tokens": 100, "hit_hot_tokens": 60, "hot_read_bytes": 1 << 40},
            misses={"evicted": 3},
            load_ms={"<=1": 4, "<=5": 1},
            breaker="half_open",
        )
        assert answer.status_code == 200
        assert answer.json() == {
            "policy": opened["policy"], "heartbeat_s": 1, "topology": opened["topology"],
            "sample": opened["sample"], "requests": {"one_in": 100},
        }  # fmt: skip
        row = UsageRollup.unscoped.get(resolution_s=60)
        assert (row.tenant_id, row.hit_hot_tokens, row.hot_read_bytes) == (tenant.pk, 60, 1 << 40)
        assert (row.misses, row.load_ms) == ({"evicted": 3}, {"<=1": 4, "<=5": 1})
        assert NodeSession.unscoped.get().breaker == "half_open"

    def test_it_brings_records_of_requests_and_tells_of_the_node(self, opened, node, valkey_bus):
        record = RequestRecord("cmpl-a-0-1", Kept.SLOW, 0.0, number=1).as_dict(0.0)
        about = {"clock_s": 0, "version": "1", "error": "x", "error_age_s": 5}
        told = {"requests": [record], "about": about, "breaker": "open"}
        assert self.beat(node, opened, **told).status_code == 200
        session = NodeSession.unscoped.get()
        assert (session.about["version"], session.about["error"]) == ("1", "x")
        assert session.about["skew_s"] < -1e9
        assert [state for _, state in session.breaker_log] == ["open"]
        assert KeptRequest.unscoped.get().session_id == session.pk
        # A heartbeat never fails for what it cannot read, and its counts stay.
        wrong = {"requests": [record, 7], "about": [], "counters": {"requested_tokens": 9}}
        assert self.beat(node, opened, seq=2, **wrong).status_code == 200
        assert KeptRequest.unscoped.count() == 1
        assert NodeSession.unscoped.get().totals["requested_tokens"] == 9

    def test_it_tells_what_a_lossy_codec_changes(
        self, opened, node, handshake, operator, team, valkey_bus
    ):
        assert team.get(f"/api/v1/spaces/{opened['space']['id']}").json()["loss"] is None
        allowed = {"lossy_codecs": "*=int4"}
        assert operator.send("patch", "/api/v1/policies/acme", allowed).status_code == 200
        lossy = handshake | {"identity": handshake["identity"] | {"codec": "int4"}}
        lossy = node.send("post", "/cache/v1/sessions", lossy).json()
        number, found = lossy["space"]["id"], {"codec": "int4"}

        def shown():
            return team.get(f"/api/v1/spaces/{number}").json()["loss"]

        assert shown() == {"codec": "int4", "error": None, "kl": None, "argmax": None}
        reports = (
            ({"kl": 0.006, "argmax": 0.96}, {"error": None, "kl": 0.006, "argmax": 0.96}),
            ({"error": 0.05, "kl": None}, {"error": 0.05, "kl": 0.006, "argmax": 0.96}),
            ({"error": -1, "kl": "x"}, {"error": 0.05, "kl": 0.006, "argmax": 0.96}),
            ({"error": 10**400, "kl": 10**400}, {"error": 0.05, "kl": 0.006, "argmax": 0.96}),
            ({"error": 0.9, "codec": "int8"}, {"error": 0.05, "kl": 0.006, "argmax": 0.96}),
        )
        for seq, (told, expected) in enumerate(reports, 1):
            about = {"loss": found | told}
            assert self.beat(node, lossy, seq=seq, about=about).status_code == 200
            assert shown() == found | expected
        context = make_context(Space.unscoped.get(pk=number))
        assert team.get(f"/api/v1/contexts/{context.pk}").json()["loss"] == shown()

    def test_what_loads_spared_and_lost_is_in_the_usage(self, opened, node, team, valkey_bus):
        names = ("decided_all", "decided_prefix", "decided_recompute", "spared_tokens")
        names += ("spared_gpu_us", "load_gpu_us", "slower_tokens", "slower_gpu_us")
        told = {name: 10 + n for n, name in enumerate((*names, "unpriced_tokens"))}
        assert self.beat(node, opened, counters=told).status_code == 200
        assert self.beat(node, opened, seq=2, counters={}).status_code == 200  # an older node
        (point,) = team.get("/api/v1/usage?range=1h").json()["points"]
        assert {name: point[name] for name in told} == told
        assert NodeSession.unscoped.get().totals == told

    def test_the_first_one_of_five_minutes_marks_what_was_counted(self, opened, node, valkey_bus):
        begun = timezone.now() - timedelta(minutes=5)
        NodeSession.unscoped.update(last_heartbeat_at=begun)
        for seq in (1, 2):
            told = {"decided_all": 2, "cold_read_bytes": 7}
            assert self.beat(node, opened, seq=seq, counters=told).status_code == 200
        (mark, *_) = NodeSession.unscoped.get().marks
        assert dict(zip(NAMES, mark[1:], strict=True)) == dict.fromkeys(NAMES, 0) | told

    def test_it_may_tell_the_speeds_that_the_engine_measured(self, opened, node, valkey_bus):
        speeds = {"prefill_s_per_token": 0.00025, "hot_bytes_per_s": 2e9}
        assert self.beat(node, opened, speeds=speeds).status_code == 200
        assert self.beat(node, opened, seq=2).status_code == 200  # says nothing new
        assert NodeSession.unscoped.get().speeds == speeds
        for wrong in ({"x": 1}, {"hot_bytes_per_s": -1}, {"hot_bytes_per_s": True}, [], 7):
            answer = self.beat(node, opened, seq=3, speeds=wrong)
            assert answer.status_code == 400, wrong
            assert answer.json()["field"].startswith("speeds")
        assert NodeSession.unscoped.get().speeds == speeds

    def test_the_most_that_it_may_count_hurts_no_total_and_no_later_one(
        self, opened, node, operator, valkey_bus
    ):
        most = dict.fromkeys(("hot_read_bytes", "cold_read_bytes", "put_blocks"), 2**53)
        for seq in range(1, 4):
            body = {"seq": seq, "counters": most, "misses": {"evicted": 2**53}}
            assert self.beat(node, opened, **body).status_code == 200
        row = UsageRollup.unscoped.get(resolution_s=3600)
        assert (row.put_blocks, row.misses) == (2**53, {"evicted": 2**53})
        assert NodeSession.unscoped.get().totals["put_blocks"] == 2**53
        points = operator.get("/api/v1/usage?range=30d").json()["points"]
        assert [point["put_blocks"] for point in points] == [2**53]

    def test_a_bus_that_is_down_does_not_fail_it(self, opened, node, monkeypatch):
        from redis import Redis

        from cacheapi.base import throttles

        monkeypatch.setattr(throttles, "_bus", lambda: Redis.from_url("redis://127.0.0.1:1/0"))
        monkeypatch.setattr(throttles.SharedThrottle, "ask_again_at", None)
        assert self.beat(node, opened, counters={"put_blocks": 1}).status_code == 200
        assert UsageRollup.unscoped.get(resolution_s=10).put_blocks == 1

    def test_the_topology_changes_with_the_servers(self, opened, node, settings):
        settings.ENV = replace(settings.ENV, hot_seeds=["elsewhere:1"])
        assert self.beat(node, opened).json()["topology"] != opened["topology"]

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("seq", {"seq": 0}),
            ("seq", {"seq": "1"}),
            ("counters", {"counters": []}),
            ("counters.hits", {"counters": {"hits": 1}}),
            ("counters.put_blocks", {"counters": {"put_blocks": -1}}),
            ("counters.put_blocks", {"counters": {"put_blocks": 1.5}}),
            ("misses.bad_luck", {"misses": {"bad_luck": 1}}),
            ("counters.put_blocks", {"counters": {"put_blocks": 2**53 + 1}}),
            ("counters.put_blocks", {"counters": {"put_blocks": True}}),
            ("counters.spared_gpu_us", {"counters": {"spared_gpu_us": 2**53 + 1}}),
            ("counters.slower_gpu_us", {"counters": {"slower_gpu_us": -1}}),
            ("counters.spared_us", {"counters": {"spared_us": 1}}),
            ("misses.evicted", {"misses": {"evicted": 2**63 - 1}}),
            ("load_ms.<=1", {"load_ms": {"<=1": "many"}}),
            ("load_ms.<=abc", {"load_ms": {"<=abc": 1}}),
            ("load_ms.<=3", {"load_ms": {"<=3": 1}}),
            ("breaker", {"breaker": "ajar"}),
            ("extra", {"extra": 1}),
        ],
    )
    def test_each_malformed_member_is_named(self, opened, node, field, body):
        assert refused(self.beat(node, opened, **body), 400, "malformed")["field"] == field

    def test_unknown_ended_and_foreign_sessions_are_404(self, opened, node):
        path = f"/cache/v1/sessions/{uuid4()}/heartbeat"
        refused(node.send("post", path, {"seq": 1}), 404, "not-found")
        stranger = type(node)(make_key(make_tenant(), "node"))
        refused(self.beat(stranger, opened), 404, "not-found")
        end = f"/cache/v1/sessions/{opened['session']}"
        refused(stranger.delete(end), 404, "not-found")
        assert node.delete(end).status_code == 204
        assert node.delete(end).status_code == 204
        refused(self.beat(node, opened), 404, "not-found")


class TestSegments:
    def test_only_whole_segments_of_the_own_tenant_are_presigned(self, opened, node, tenant, s3):
        import urllib.request

        from django.conf import settings

        space = make_space(tenant, "s")
        live, dying = make_segment(space), make_segment(space, state="deleting")
        unfinished = make_segment(space, state="uploading")
        foreign = make_segment(make_space(make_tenant(), "s"))
        from storage import s3 as bucket

        bucket.ensure_bucket()
        bucket.client().put_object(
            Bucket=settings.ENV.s3_bucket, Key=live.object_key, Body=b"0123456789"
        )
        ids = f"{live.pk},{dying.pk},{unfinished.pk},{foreign.pk},999999"
        answer = node.get(f"/cache/v1/sessions/{opened['session']}/segments?ids={ids}").json()
        assert set(answer["segments"]) == {str(live.pk), str(dying.pk)}
        assert answer["expires_s"] == 300
        request = urllib.request.Request(
            answer["segments"][str(live.pk)], headers={"Range": "bytes=2-4"}
        )
        with urllib.request.urlopen(request) as response:
            assert (response.status, response.read()) == (206, b"234")

    @pytest.mark.parametrize("ids", ["", "a", "1,,2", "-1", "1.5", ",".join(["1"] * 1001)])
    def test_malformed_ids_are_named(self, opened, node, ids):
        answer = node.get(f"/cache/v1/sessions/{opened['session']}/segments", {"ids": ids})
        assert refused(answer, 400, "malformed")["field"] == "ids"


class TestContexts:
    def body(self, opened, **fields):
        ids = [os.urandom(16).hex() for _ in range(2)]
        return {
            "session": opened["session"], "name": "repo-42", "block_ids": ids, "tokens": 512,
            **fields,
        }  # fmt: skip

    def test_a_report_makes_or_replaces_a_context(self, opened, node, tenant):
        body = self.body(opened, label="agent", pin_s=7200)
        first = node.send("post", "/cache/v1/contexts", body)
        assert first.status_code == 201, first.content
        assert first.json()["blocks"] == 2
        longer = body | {"block_ids": [*body["block_ids"], "ab" * 16], "pin_s": None}
        second = node.send("post", "/cache/v1/contexts", longer)
        assert second.status_code == 200
        assert second.json() == first.json() | {"blocks": 3}
        with tenant_scope(tenant.pk):
            context = Context.objects.get()
        assert context.is_pinned
        assert context.ids()[2] == b"\xab" * 16

    def test_a_report_says_who_used_it_when_and_adds_labels(self, opened, node, tenant):
        body = self.body(opened, labels={"team": "blue"})
        assert node.send("post", "/cache/v1/contexts", body).status_code == 201
        with tenant_scope(tenant.pk):
            first = Context.objects.get()
        assert first.owner_name.startswith("key:node key (neve_")
        assert first.state == "stored"
        labels = {f"l{n}": "x" for n in range(15)} | {"team": "red"}
        node.send("post", "/cache/v1/contexts", body | {"labels": labels})
        # More than sixteen do not fit: the request's context is recorded all the same.
        answer = node.send("post", "/cache/v1/contexts", body | {"labels": {"more": "x"}})
        assert answer.status_code == 200
        with tenant_scope(tenant.pk):
            last = Context.objects.get()
        assert last.labels == dict(sorted(labels.items()))
        assert last.last_used_at > first.last_used_at
        assert last.revision == first.revision  # nobody decided anything
        wrong = node.send("post", "/cache/v1/contexts", body | {"labels": {"0": "x"}})
        assert refused(wrong, 400, "malformed")["field"] == "labels"

    @pytest.mark.parametrize(("limit", "most"), [("context_limit", 2), ("context_block_limit", 1)])
    def test_a_limit_of_the_tenant_is_named_with_its_number(
        self, opened, node, tenant, settings, limit, most
    ):
        settings.ENV = replace(settings.ENV, **{limit: most})
        bodies = [self.body(opened, name=f"c{n}") for n in range(3)]
        answers = [node.send("post", "/cache/v1/contexts", body) for body in bodies]
        problem = refused(answers[-1], 409, "limit-reached")
        assert (problem["limit"], problem["most"]) == (limit, most)
        assert f"the limit is {most}" in problem["detail"]
        if limit == "context_limit":  # what is there already is recorded as before
            assert node.send("post", "/cache/v1/contexts", bodies[0]).status_code == 200
        with tenant_scope(tenant.pk):
            Quota.objects.update(**{limit: 4})
        assert node.send("post", "/cache/v1/contexts", bodies[-1]).status_code == 201

    def test_all_contexts_of_a_tenant_have_so_many_blocks_together(self, opened, node, settings):
        settings.ENV = replace(settings.ENV, context_blocks_limit=4)
        bodies = [self.body(opened, name=f"c{n}") for n in range(3)]  # of two blocks each
        answers = [node.send("post", "/cache/v1/contexts", body) for body in bodies]
        problem = refused(answers[-1], 409, "limit-reached")
        assert (problem["limit"], problem["most"]) == ("context_blocks_limit", 4)
        assert node.send("post", "/cache/v1/contexts", bodies[0]).status_code == 200

    def test_a_requests_pin_belongs_to_the_nodes_key(self, opened, node, team, tenant):
        made = node.send("post", "/cache/v1/contexts", self.body(opened, pin_s=7200)).json()
        path = f"/api/v1/contexts/{made['id']}"
        (pin,) = team.get(path).json()["pins"]
        assert pin["owner"].startswith("key:node key")
        assert team.send("post", f"{path}/unpin").json()["removed"] == 0
        assert team.send("post", f"{path}/expire").json()["pins"][0]["owner"] == pin["owner"]

    def test_the_longest_wishes_that_the_connector_reads_are_taken(self, opened, node):
        asked = {
            "context": "n" * params.MAX_NAME_CHARS,
            "label": "l" * params.MAX_LABEL_CHARS,
            "pin": params.MAX_PIN_S,
        }
        asked_for = params.read_params({"neve": asked})
        body = self.body(opened, name=asked_for.name, label=asked_for.label, pin_s=asked_for.pin_s)
        assert list(asked.values()) == [asked_for.name, asked_for.label, asked_for.pin_s]
        assert node.send("post", "/cache/v1/contexts", body).status_code == 201

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("session", "x"),
            ("name", ""),
            ("name", "n" * 201),
            ("block_ids", []),
            ("block_ids", "ab" * 16),
            ("block_ids", ["ab" * 15]),
            ("block_ids", ["zz" * 16]),
            ("block_ids", [" " + "ab" * 16]),
            ("block_ids", [5]),
            ("tokens", 0),
            ("label", 5),
            ("pin_s", 0),
            ("pin_s", "2h"),
        ],
    )
    def test_each_malformed_member_is_named(self, opened, node, field, value):
        answer = node.send("post", "/cache/v1/contexts", self.body(opened, **{field: value}))
        assert refused(answer, 400, "malformed")["field"] == field

    def test_a_foreign_session_is_404(self, opened, node):
        stranger = type(node)(make_key(make_tenant(), "node"))
        answer = stranger.send("post", "/cache/v1/contexts", self.body(opened))
        refused(answer, 404, "not-found")
