"""/api/v1 for teams and operators: lists, filters, pages, contexts, quotas, keys, usage."""

import os
from datetime import timedelta

import pytest
from django.utils import timezone

from catalog import usage
from catalog.models import Context, NodeSession
from neve.formats.keys import BucketKeys
from retention import provisioning
from storage import hot
from support.rows import (
    make_context,
    make_everything,
    make_key,
    make_session,
    make_space,
    make_tenant,
)
from tenants.keys import find_key
from tenants.models import AuditEvent, Quota

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def results(answer):
    assert answer.status_code == 200, answer.content
    return answer.json()["results"]


class TestLists:
    def test_an_operator_sees_all_and_may_choose_a_tenant(self, operator):
        a, b = make_tenant("a1"), make_tenant("b1")
        make_everything(a), make_everything(b)
        for kind in ("contexts", "spaces", "nodes", "segments", "jobs", "keys", "audit"):
            seen = {row["tenant"] for row in results(operator.get(f"/api/v1/{kind}"))}
            assert seen >= {"a1", "b1"}
            chosen = results(operator.get(f"/api/v1/{kind}?tenant=b1"))
            assert {row["tenant"] for row in chosen} == {"b1"}

    def test_pages_follow_each_other_by_cursor(self, team, tenant):
        space = make_space(tenant)
        names = {make_context(space, f"c{n}").name for n in range(7)}
        seen, path, pages = [], "/api/v1/contexts?page_size=3", 0
        while path:
            page = team.get(path).json()
            seen += [row["name"] for row in page["results"]]
            path, pages = page["next"], pages + 1
        assert (len(seen), set(seen), pages) == (7, names, 3)

    def test_contexts_are_filtered(self, team, tenant):
        one, two = make_space(tenant, "one"), make_space(tenant, "two")
        make_context(one, "repo-42")
        labelled = make_context(two, "chat")
        pinned = timezone.now() + timedelta(hours=1)
        Context.unscoped.filter(pk=labelled.pk).update(label="agent", pinned_until=pinned)

        def names(query):
            return {row["name"] for row in results(team.get(f"/api/v1/contexts?{query}"))}

        assert names("name=repo-42") == {"repo-42"}
        assert names("search=REPO") == {"repo-42"}
        assert names("label=agent") == {"chat"}
        assert names(f"space={one.pk}") == {"repo-42"}
        assert names("pinned=true") == {"chat"}
        assert names("pinned=false") == {"repo-42"}

    def test_secrets_do_not_show(self, team):
        (row,) = results(team.get("/api/v1/keys"))
        assert not any("secret" in name or "hmac" in name for name in row)

    def test_live_nodes_are_told_apart(self, team, tenant):
        make_everything(tenant)
        assert len(results(team.get("/api/v1/nodes?live=true"))) == 1
        assert results(team.get("/api/v1/nodes?live=false")) == []

    def test_counters_of_a_node_are_those_of_all_its_sessions(self, team, tenant):
        space = make_space(tenant)
        asked = {"requested_tokens": 90, "tail_tokens": 10}
        part = make_session(space, "loc/scheduler", totals=asked)
        ranks = [make_session(space, "loc", totals={"hit_local_tokens": n}) for n in (50, 25)]
        make_session(space, "loc/dp1", totals={"hit_hot_tokens": 7})
        before = make_session(space, "loc", totals={"hit_hot_tokens": 7})
        long_ago = timezone.now() - timedelta(hours=1)
        NodeSession.unscoped.filter(pk=before.pk).update(
            opened_at=long_ago, last_heartbeat_at=long_ago, ended_at=long_ago
        )
        found = {row["id"]: row["node_totals"] for row in results(team.get("/api/v1/nodes"))}
        for one in (part, *ranks):
            assert {k: v for k, v in found[str(one.pk)].items() if v} == {
                **asked,
                "hit_local_tokens": 75,
            }
            (alone,) = [team.get(f"/api/v1/nodes/{one.pk}").json()["node_totals"]]
            assert alone == found[str(one.pk)]
        assert found[str(before.pk)]["hit_hot_tokens"] == 7


@pytest.mark.django_db(transaction=True)
class TestContexts:
    @pytest.fixture
    def context(self, clean_hot, tenant):
        provisioning.provision_tenant(tenant)
        ids = [os.urandom(16) for _ in range(3)]
        space = make_space(tenant)
        for id_ in ids[:2]:
            hot.admin().set(BucketKeys(tenant.pk, 0).block(space.pk, id_), bytes(100), px=60_000)
        hot.hot_tier(tenant.pk).commit(space.pk, [(id_, 100, 256) for id_ in ids[:2]])
        return make_context(space, "repo-42", ids)

    def test_the_detail_tells_the_residency(self, team, context):
        path = f"/api/v1/contexts/{context.pk}"
        short = team.get(path).json()
        assert short["residency"] == {
            **{"hot": 2, "cold": 0, "lost": 1, "durable": 0},
            **{"hot_bytes": 200, "cold_bytes": 0, "durable_bytes": 0},
            **{"hot_tokens": 512, "cold_tokens": 0, "lost_tokens": 256, "durable_tokens": 0},
            **{"usable_tokens": 512, "usable_hot_tokens": 512, "states": None},
        }
        assert short["pins"] == []
        blocks = team.get(f"{path}?blocks=1").json()["residency"]["blocks"]
        assert [block["tier"] for block in blocks] == ["hot", "hot", None]
        assert blocks[2]["reason"] == "never_stored"
        assert blocks[0]["id"] == context.ids()[0].hex()

    def test_pin_unpin_extend_expire(self, team, context):
        path = f"/api/v1/contexts/{context.pk}"
        pinned = team.send("post", f"{path}/pin", {"for_s": 600})
        assert pinned.status_code == 200
        assert pinned.json()["kept"] == 2
        assert pinned.json()["pinned_until"] > timezone.now().isoformat()
        until = (timezone.now() + timedelta(hours=1)).isoformat()
        assert team.send("post", f"{path}/pin", {"until": until}).status_code == 200
        assert team.send("post", f"{path}/unpin").json() == {
            **{"removed": 1, "pinned_until": None, "kept": 0}
        }
        assert team.send("post", f"{path}/extend", {"for_s": 60}).json() == {
            **{"extended": 2, "lost": 1}
        }
        sharer = make_context(context.space, "repo-43", context.ids()[:1])
        numbers = {"removed": 1, "removed_bytes": 100, "shared": 1, "shared_bytes": 100}
        numbers |= {"pinned": 0, "lost": 1}
        preview = team.send("post", f"{path}/expire", {"dry_run": True})
        assert preview.json() == {"dry_run": True, "expires_at": None, **numbers}
        assert team.get(path).json()["expired_at"] is None
        assert team.send("post", f"{path}/expire").json() == {
            **{"dry_run": False, "expires_at": None, **numbers}
        }
        residency = team.get(path).json()["residency"]
        assert (residency["hot"], residency["lost"]) == (1, 2)
        assert team.get(f"/api/v1/contexts/{sharer.pk}").json()["residency"]["hot"] == 1
        gone = team.send("post", f"{path}/pin", {"for_s": 600})
        assert (gone.status_code, gone.json()["type"]) == (409, "/problems/context-gone")
        event = AuditEvent.unscoped.filter(action="context.expire").get()
        assert event.actor_name.startswith("key:team key (neve_")
        assert event.request_id

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("until", {}),
            ("until", {"until": "2h"}),
            ("until", {"until": "2001-01-01T00:00:00Z"}),
            ("until", {"until": "2999-01-01T00:00:00Z", "for_s": 5}),
            ("until", {"until": "2999-01-01T00:00:00Z"}),
            ("for_s", {"for_s": 0}),
            ("for_s", {"for_s": "600"}),
            ("hours", {"for_s": 5, "hours": 2}),
        ],
    )
    def test_a_malformed_pin_is_explained(self, team, context, field, body):
        answer = team.send("post", f"/api/v1/contexts/{context.pk}/pin", body)
        assert answer.status_code == 400
        assert answer.json()["field"] == field

    def test_pins_belong_to_who_set_them(self, team, operator, tenant, context):
        path = f"/api/v1/contexts/{context.pk}"
        day = team.send("post", f"{path}/pin", {"for_s": 86400, "reason": "release 4"}).json()
        other = type(team)(make_key(tenant, "team"))
        short = other.send("post", f"{path}/pin", {"for_s": 5}).json()
        assert short["pinned_until"] == day["pin"]["until"] == day["pinned_until"]
        assert [row["reason"] for row in team.get(path).json()["pins"]] == ["release 4", ""]
        assert other.send("post", f"{path}/expire").json()["type"] == "/problems/pinned-by-others"
        assert other.delete(path).status_code == 409
        for body in ({"all": True}, {"pin": day["pin"]["id"]}):
            assert other.send("post", f"{path}/unpin", body).status_code == 403
        left = other.send("post", f"{path}/unpin").json()
        assert left == {"removed": 1, "pinned_until": day["pinned_until"], "kept": 2}
        left = operator.send("post", f"{path}/unpin", {"all": True}).json()
        assert left == {"removed": 1, "pinned_until": None, "kept": 0}
        assert team.send("post", f"{path}/unpin", {"pin": 99}).json()["field"] == "pin"

    def test_a_rotated_key_owns_the_pins_of_the_old_one(self, team, operator, tenant, context):
        path = f"/api/v1/contexts/{context.pk}"
        pin = team.send("post", f"{path}/pin", {"for": "1d"}).json()["pin"]
        (old,) = results(team.get("/api/v1/keys"))
        for _ in range(2):
            new = operator.send("post", f"/api/v1/keys/{old['id']}/rotate").json()
            old, team = new, type(team)(new["key"])
        assert team.send("post", f"{path}/pin", {"for": "2d"}).json()["pin"]["id"] == pin["id"]
        assert team.send("post", f"{path}/unpin").json()["removed"] == 1
        assert team.send("post", f"{path}/expire").status_code == 200

    def test_a_context_is_deleted_once(self, team, context):
        path = f"/api/v1/contexts/{context.pk}"
        assert team.delete(path).status_code == 204
        assert team.get(path).status_code == 404
        assert team.delete(path).status_code == 404
        assert hot.hot_tier(context.tenant_id).usage().hot_blocks == 2

    def test_without_the_hot_tier_residency_is_unknown_and_actions_are_503(
        self, team, context, settings
    ):
        from dataclasses import replace

        settings.ENV = replace(settings.ENV, hot_url="valkey://127.0.0.1:1/0")
        path = f"/api/v1/contexts/{context.pk}"
        assert team.get(path).json()["residency"] is None
        assert team.send("post", f"{path}/pin", {"for_s": 5}).status_code == 503


class TestTenants:
    def test_an_operator_sets_a_part_of_a_quota(self, operator, tenant):
        answer = operator.send("patch", "/api/v1/tenants/acme/quota", {"hot_bytes": 77})
        assert answer.json() == {
            **{"hot_bytes": 77, "cold_bytes": 16 << 30},
            **{"space_limit": 100, "context_limit": 10_000, "context_block_limit": 32_768},
        }
        body = {"context_limit": 5}
        assert operator.send("patch", "/api/v1/tenants/acme/quota", body).json()["hot_bytes"] == 77
        body = {"context_limit": None, "space_limit": 3}
        answer = operator.send("patch", "/api/v1/tenants/acme/quota", body).json()
        assert (answer["space_limit"], answer["context_limit"]) == (3, 10_000)
        assert Quota.unscoped.get(tenant=tenant).hot_bytes == 77
        assert operator.get("/api/v1/tenants/acme").json()["quota"]["hot_bytes"] == 77
        assert AuditEvent.unscoped.filter(action="quota.set").last().before["hot_bytes"] == 1 << 30

    @pytest.mark.parametrize(
        "body", [{}, {"hot_bytes": -1}, {"hot_bytes": "1"}, {"hot_bytes": 1 << 63}, {"warm": 1}]
    )
    def test_a_malformed_quota_changes_nothing(self, operator, tenant, body):
        assert operator.send("patch", "/api/v1/tenants/acme/quota", body).status_code == 400
        assert Quota.unscoped.get(tenant=tenant).hot_bytes == 1 << 30


class TestKeys:
    def test_a_new_key_works_and_is_shown_once(self, operator, tenant):
        body = {"name": "ci", "role": "node", "tenant": "acme"}
        made = operator.send("post", "/api/v1/keys", body)
        assert made.status_code == 201, made.content
        assert find_key(made.json()["key"]).tenant == tenant
        path = f"/api/v1/keys/{made.json()['id']}"
        assert "key" not in operator.get(path).json()
        assert operator.send("post", f"{path}/revoke").json()["revoked_at"]
        assert find_key(made.json()["key"]) is None

    @pytest.mark.parametrize(
        ("field", "change"),
        [
            ("tenant", {"tenant": None}),
            ("tenant", {"tenant": "nobody"}),
            ("tenant", {"role": "operator"}),
            ("role", {"role": "king"}),
            ("name", {"name": ""}),
            ("expires_at", {"expires_at": "2001-01-01T00:00:00Z"}),
        ],
    )
    def test_a_malformed_key_is_explained(self, operator, tenant, field, change):
        body = {"name": "ci", "role": "node", "tenant": "acme", **change}
        answer = operator.send("post", "/api/v1/keys", body)
        assert answer.status_code == 400
        assert answer.json()["field"] == field


class TestUsage:
    def test_points_of_the_range_in_its_resolution(self, team, tenant):
        for at, blocks in ((timezone.now(), 3), (timezone.now() - timedelta(hours=2), 5)):
            usage.record_deltas(
                tenant_id=tenant.pk, at=at, counters={"put_blocks": blocks}, misses={}, load_ms={}
            )
        now = team.get("/api/v1/usage").json()
        assert (now["resolution_s"], [p["put_blocks"] for p in now["points"]]) == (10, [3])
        hours = team.get("/api/v1/usage?range=6h").json()
        assert (hours["resolution_s"], [p["put_blocks"] for p in hours["points"]]) == (60, [5, 3])
        assert team.get("/api/v1/usage?range=1y").json()["field"] == "range"


class TestRemoval:
    def test_a_space_goes_only_when_its_name_is_repeated(self, operator, tenant):
        space = make_space(tenant)
        make_context(space)
        path = f"/api/v1/spaces/{space.pk}"
        first = operator.send("delete", path)
        assert (first.status_code, first.json()["type"]) == (409, "/problems/unconfirmed")
        weight = {"contexts": 1, "segments": 0, "segment_bytes": 0}
        assert first.json().items() >= weight.items()
        assert operator.send("delete", f"{path}?confirm=another").status_code == 409
        second = operator.send("delete", f"{path}?confirm={space.name}")
        assert (second.status_code, second.json()) == (202, weight)
        space.refresh_from_db()
        assert space.is_leaving
        assert AuditEvent.unscoped.filter(action="space.remove").exists()

    def test_a_tenant_is_cut_off_at_once(self, operator, team, tenant):
        assert operator.send("delete", "/api/v1/tenants/acme").status_code == 409
        assert operator.send("delete", "/api/v1/tenants/acme?confirm=acme").status_code == 202
        assert team.send("get", "/api/v1/contexts").status_code == 401
