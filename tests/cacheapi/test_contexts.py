"""/api/v1/contexts as a team uses it: names and labels, tiers of pins, ends, filters, residency."""

import os
from datetime import timedelta
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest
from django.utils import timezone

from catalog.models import Context, Job
from contexts import checking, ends
from events.models import Event
from neve.formats.keys import BucketKeys
from retention import provisioning
from storage import hot, hot_servers
from support.rows import make_context, make_key, make_space, make_tenant
from tenants.models import AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


def store(space, ids, size=100):
    for id_ in ids:
        key = BucketKeys(space.tenant_id, 0).block(space.pk, id_)
        hot_servers.admin().set(key, bytes(size), px=60_000)
    hot.hot_tier(space.tenant_id).commit(space.pk, [(id_, size, 256) for id_ in ids])


def kinds():
    return list(Event.unscoped.order_by("pk").values_list("kind", flat=True))


@pytest.fixture
def space(tenant):
    return make_space(tenant)


@pytest.fixture
def context(clean_hot, tenant, space):
    """Three blocks, of which the first two are stored."""
    provisioning.provision_tenant(tenant)
    context = make_context(space, "repo-42", [os.urandom(16) for _ in range(3)])
    store(space, context.ids()[:2])
    return context


@pytest.fixture
def path(context):
    return f"/api/v1/contexts/{context.pk}"


class TestNamesAndLabels:
    def test_a_patch_changes_what_it_names(self, team, path):
        body = {"name": "repo-43", "label": "agent", "labels": {"team": "blue", "ci": "no"}}
        row = team.send("patch", path, body).json()
        assert (row["name"], row["label"]) == ("repo-43", "agent")
        assert row["labels"] == {"ci": "no", "team": "blue"}
        row = team.send("patch", path, {"labels": {"ci": None, "stage": "test"}}).json()
        assert row["labels"] == {"stage": "test", "team": "blue"}
        assert row["name"] == "repo-43"
        event = AuditEvent.unscoped.filter(action="context.update").latest("pk")
        assert event.before["labels"] == {"ci": "no", "team": "blue"}
        assert event.after["labels"] == {"stage": "test", "team": "blue"}

    def test_a_patch_that_changes_nothing_leaves_no_trace(self, team, path, context):
        assert team.send("patch", path, {"name": "repo-42"}).status_code == 200
        assert not AuditEvent.unscoped.filter(action="context.update").exists()
        assert Context.unscoped.get(pk=context.pk).revision == context.revision

    def test_a_context_that_nodes_use_stays_the_one_that_was_read(self, team, path, context):
        read = team.get(path)["ETag"]
        now = timezone.now()
        moved = {"state": "partial", "size_bytes": 200, "updated_at": now, "last_used_at": now}
        Context.unscoped.filter(pk=context.pk).update(tokens=900, **moved)
        sent = {"headers": {"If-Match": read}}
        assert team.send("patch", path, {"labels": {"team": "blue"}}, **sent).status_code == 200
        assert team.send("patch", path, {"labels": {"team": "red"}}, **sent).status_code == 412

    def test_a_name_is_given_once_in_a_space(self, team, path, context, tenant):
        make_context(context.space, "taken")
        make_context(make_space(tenant, "other"), "free-here")
        answer = team.send("patch", path, {"name": "taken"})
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
        assert answer.json()["field"] == "name"
        assert team.send("patch", path, {"name": "free-here"}).status_code == 200

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("name", {}),
            ("name", {"name": " "}),
            ("name", {"name": "x" * 201}),
            ("label", {"label": 5}),
            ("labels", {"labels": ["team"]}),
            ("labels", {"labels": {"0": "x"}}),
            ("labels", {"labels": {"a b": "x"}}),
            ("labels", {"labels": {"a" * 64: "x"}}),
            ("labels", {"labels": {"team": "x" * 201}}),
            ("labels", {"labels": {"team": "a\nb"}}),
            ("labels", {"labels": {"team": 5}}),
            ("labels", {"labels": {f"l{n}": "x" for n in range(17)}}),
            ("tokens", {"tokens": 5}),
        ],
    )
    def test_a_malformed_change_is_explained(self, team, path, field, body):
        answer = team.send("patch", path, body)
        assert answer.status_code == 400
        assert answer.json()["field"] == field

    def test_a_context_keeps_sixteen_labels_at_most(self, team, path):
        labels = {f"l{n}": "x" for n in range(16)}
        assert team.send("patch", path, {"labels": labels}).status_code == 200
        answer = team.send("patch", path, {"labels": {"one-more": "x"}})
        assert (answer.status_code, answer.json()["field"]) == (400, "labels")

    def test_a_stranger_changes_nothing(self, team, path):
        Caller = type(team)

        stranger = Caller(make_key(make_tenant("stranger"), "team"))
        assert stranger.send("patch", path, {"name": "mine"}).status_code == 404
        assert stranger.get(f"{path}/residency").status_code == 404


class TestPins:
    def test_a_pin_says_its_tier(self, team, path, context):
        pinned = team.send("post", f"{path}/pin", {"for_s": 600}).json()
        assert (pinned["pin"]["tier"], pinned["hot"], pinned["durable"]) == ("any", None, None)
        assert team.get(path).json()["pin_tier"] == "any"
        pinned = team.send("post", f"{path}/pin", {"for_s": 600, "tier": "hot"}).json()
        assert (pinned["pin"]["tier"], pinned["hot"], pinned["durable"]) == ("hot", 2, 0)
        row = team.get(path).json()
        assert (row["pin_tier"], row["is_pinned"]) == ("hot", True)
        assert not Job.unscoped.filter(kind="promote").exists()  # nothing is cold
        assert team.send("post", f"{path}/unpin").status_code == 200
        assert team.get(path).json()["pin_tier"] is None
        assert kinds() == ["context.pinned", "context.pinned", "context.unpinned"]

    def test_a_durable_pin_has_blocks_flushed_that_the_policy_never_flushes(
        self, team, operator, path, context
    ):
        never = {"flush_mode": "never"}
        assert operator.send("patch", "/api/v1/policies/acme", never).status_code == 200
        tier = hot.hot_tier(context.tenant_id)
        store(context.space, context.ids()[2:])
        assert tier.retain(context.ids(), _never(), held=False, join=False, flush=True) == 3
        assert tier.usage().dirty_blocks == 0
        pinned = team.send("post", f"{path}/pin", {"for_s": 600, "tier": "durable"}).json()
        assert (pinned["hot"], pinned["durable"]) == (3, 0)
        assert tier.usage().dirty_blocks == 3
        leased = tier.lease_dirty(lease_s=60, most_blocks=10, most_bytes=1 << 30)
        assert {block.id for block in leased} == set(context.ids())

    def test_an_unknown_tier_is_refused(self, team, path):
        answer = team.send("post", f"{path}/pin", {"for_s": 600, "tier": "warm"})
        assert (answer.status_code, answer.json()["field"]) == (400, "tier")


def _never():
    from neve.index.tier import BlockTerms

    return BlockTerms(flush_after_s=None)


class TestEnds:
    def test_an_expiry_is_scheduled_shown_and_taken_back(self, team, path, context):
        at = (timezone.now() + timedelta(days=1)).isoformat()
        answer = team.send("post", f"{path}/expire", {"at": at}).json()
        assert (answer["removed"], answer["expires_at"][:19]) == (2, at[:19])
        assert team.get(path).json()["expires_at"][:19] == at[:19]
        assert hot.hot_tier(context.tenant_id).usage().hot_blocks == 2
        answer = team.send("post", f"{path}/expire", {"at": None}).json()
        assert (answer["removed"], answer["expires_at"]) == (0, None)
        assert team.get(path).json()["expires_at"] is None

    @pytest.mark.parametrize("at", ["2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "tomorrow"])
    def test_a_malformed_time_is_refused(self, team, path, at):
        answer = team.send("post", f"{path}/expire", {"at": at})
        assert (answer.status_code, answer.json()["field"]) == (400, "at")

    def test_its_time_comes(self, team, path, context):
        at = timezone.now() + timedelta(minutes=5)
        team.send("post", f"{path}/expire", {"at": at.isoformat()})
        assert ends.tenants_with_work() == [context.tenant_id]
        assert ends.announce_near(context.tenant_id) == 1
        assert ends.announce_near(context.tenant_id) == 0
        event = Event.unscoped.get(kind="context.expiring_soon")
        assert event.data["ends"] == "expiry"
        assert ends.tenants_with_work() == []
        past = timezone.now() - timedelta(seconds=1)
        Context.unscoped.filter(pk=context.pk).update(expires_at=past)
        assert ends.tenants_with_work() == [context.tenant_id]
        assert ends.expire_due(context.tenant_id) == 1
        row = team.get(path).json()
        assert (row["state"], row["expires_at"]) == ("expired", None)
        assert hot.hot_tier(context.tenant_id).usage().hot_blocks == 0
        assert Event.unscoped.get(kind="context.expired").data["removed_blocks"] == 2

    def test_it_waits_for_pins(self, team, path, context):
        team.send("post", f"{path}/pin", {"for_s": 6000})
        past = timezone.now() - timedelta(seconds=1)
        Context.unscoped.filter(pk=context.pk).update(expires_at=past)
        assert ends.expire_due(context.tenant_id) == 0
        team.send("post", f"{path}/unpin")
        assert ends.expire_due(context.tenant_id) == 1

    def test_deleting_is_told(self, team, path):
        assert team.delete(path).status_code == 204
        assert kinds() == ["context.deleted"]


class TestStates:
    def check(self, context):
        Context.unscoped.filter(pk=context.pk).update(checked_at=None)
        assert checking.check(context.tenant_id) == 1

    def test_a_context_is_partial_stored_or_lost(self, team, path, context):
        self.check(context)
        row = team.get(path).json()
        assert (row["state"], row["size_bytes"]) == ("partial", 200)
        assert row["checked_at"]
        store(context.space, context.ids())
        self.check(context)
        assert team.get(path).json()["state"] == "stored"
        hot.hot_tier(context.tenant_id).expire(context.ids()[:1])
        self.check(context)
        row = team.get(path).json()
        assert (row["state"], row["size_bytes"]) == ("lost", 200)  # the others are of no use
        assert kinds() == ["context.lost", "context.stored", "context.lost"]
        lost = Event.unscoped.filter(kind="context.lost").order_by("pk")
        assert [event.data for event in lost] == [
            {"lost_blocks": 1, "state": "partial"},
            {"lost_blocks": 1, "state": "lost"},
        ]

    def test_an_expected_context_waits_for_its_first_block(self, team, path, context):
        Context.unscoped.filter(pk=context.pk).update(state="expected")
        hot.hot_tier(context.tenant_id).expire(context.ids())
        self.check(context)
        assert team.get(path).json()["state"] == "expected"
        store(context.space, context.ids())
        self.check(context)
        assert team.get(path).json()["state"] == "stored"
        assert kinds() == ["context.stored"]

    def test_a_turn_is_bounded_and_the_pinned_come_first(self, context, space, monkeypatch):
        old = timezone.now() - timedelta(hours=2)
        others = [make_context(space, f"c{n}") for n in range(4)]
        Context.unscoped.update(checked_at=old)
        later = timezone.now() + timedelta(hours=1)
        Context.unscoped.filter(pk=others[2].pk).update(pinned_until=later)
        Context.unscoped.filter(pk=others[3].pk).update(last_used_at=timezone.now())
        monkeypatch.setattr(checking, "MOST_BLOCKS", 6)
        assert checking.check(context.tenant_id) == 2
        fresh = Context.unscoped.filter(checked_at__gt=old).values_list("name", flat=True)
        assert set(fresh) == {"c2", "c3"}
        assert checking.check(context.tenant_id) == 2
        assert checking.check(context.tenant_id) == 1
        assert checking.check(context.tenant_id) == 0

    def test_what_a_node_says_meanwhile_stays(self, context, monkeypatch):
        look = checking.look

        def late(*args):
            found = list(look(*args))
            Context.unscoped.filter(pk=context.pk).update(updated_at=timezone.now())
            return found

        monkeypatch.setattr(checking, "look", late)
        assert checking.check(context.tenant_id) == 1
        row = Context.unscoped.get(pk=context.pk)
        assert (row.state, row.checked_at) == ("stored", None)


class TestResidency:
    def test_it_comes_in_runs(self, team, path, context):
        found = team.get(f"{path}/residency").json()
        assert found["usable_tokens"] == 512
        assert found["runs"] == [
            {
                **{"first_token": 0, "tokens": 512, "bytes": 200, "tier": "hot"},
                **{"is_durable": False, "reason": None},
            },
            {
                **{"first_token": 512, "tokens": 256, "bytes": 0, "tier": None},
                **{"is_durable": False, "reason": "never_stored"},
            },
        ]
        assert "blocks" not in found
        assert len(team.get(f"{path}/residency?blocks=true").json()["blocks"]) == 3

    def test_without_the_hot_tier_it_is_503(self, team, path, settings):
        from dataclasses import replace

        settings.ENV = replace(settings.ENV, hot_url="valkey://127.0.0.1:1/0")
        assert team.get(f"{path}/residency").status_code == 503


class TestFilters:
    @pytest.fixture
    def names(self, team, tenant):
        one, two = make_space(tenant, "org/one"), make_space(tenant, "org/two")
        rows = {name: make_context(one, name) for name in ("repo-1", "repo-22", "Repo-3", "a%b")}
        rows["chat[1]"] = make_context(two, "chat[1]")
        now = timezone.now()

        def change(name, **fields):
            Context.unscoped.filter(pk=rows[name].pk).update(**fields)

        change("repo-1", labels={"team": "blue", "stage": "test"}, tokens=10, size_bytes=5)
        change("repo-22", labels={"team": "red", "x.y/z": "v"}, state="lost", owner_name="ann")
        change("Repo-3", last_used_at=now - timedelta(days=2))
        change("a%b", last_used_at=now, created_at=now - timedelta(days=9))

        def names(**query):
            answer = team.get(f"/api/v1/contexts?{urlencode(query)}")
            assert answer.status_code == 200, answer.content
            return {row["name"] for row in answer.json()["results"]}

        return names

    @pytest.mark.parametrize(
        ("pattern", "found"),
        [
            ("repo-*", {"repo-1", "repo-22"}),
            ("repo-?", {"repo-1"}),
            ("[rR]epo-[0-9]", {"repo-1", "Repo-3"}),
            ("[!r]epo-*", {"Repo-3"}),
            ("*%*", {"a%b"}),
            ("a_b", set()),
            ("chat[[]1]", set()),
            ("chat[1", set()),
            ("*[1]", {"repo-1"}),
            ("chat?1?", {"chat[1]"}),
            ("*", {"repo-1", "repo-22", "Repo-3", "a%b", "chat[1]"}),
            (r"\*", set()),
        ],
    )
    def test_a_glob_is_a_pattern_of_the_whole_name(self, names, pattern, found):
        assert names(glob=pattern) == found

    def test_a_glob_of_many_stars_is_refused(self, team):
        answer = team.get(f"/api/v1/contexts?glob={quote('a*' * 9)}")
        assert (answer.status_code, answer.json()["field"]) == (400, "glob")

    def test_by_labels(self, names):
        assert names(labels="team=blue") == {"repo-1"}
        assert names(labels="team") == {"repo-1", "repo-22"}
        assert names(labels="team=blue,stage=test") == {"repo-1"}
        assert names(labels="team=red,stage=test") == set()
        assert names(labels="x.y/z=v") == {"repo-22"}
        assert names(labels="contains=v") == set()

    def test_by_what_they_are(self, names):
        assert names(model="org/two") == {"chat[1]"}
        assert names(state="lost") == {"repo-22"}
        assert names(owner="ann") == {"repo-22"}
        assert names(max_tokens=10) == {"repo-1"}
        assert names(min_tokens=11, model="org/two") == {"chat[1]"}
        assert names(min_bytes=5, max_bytes=5) == {"repo-1"}

    def test_by_time(self, names):
        day = (timezone.now() - timedelta(days=1)).isoformat()
        assert names(used_after=day) == {"a%b"}
        assert names(used_before=day) == {"Repo-3"}
        assert names(created_before=day) == {"a%b"}
        assert "a%b" not in names(created_after=day)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("state", "gone"),
            ("labels", "=x"),
            ("labels", "a b=x"),
            ("used_after", "yesterday"),
            ("min_tokens", "-1"),
            ("max_bytes", "9" * 20),
        ],
    )
    def test_a_malformed_filter_is_refused(self, team, field, value):
        answer = team.get(f"/api/v1/contexts?{urlencode({field: value})}")
        assert (answer.status_code, answer.json()["field"]) == (400, field)


class TestOrder:
    @pytest.mark.parametrize("key", ["last_used_at", "size_bytes", "tokens", "name"])
    @pytest.mark.parametrize("sign", ["", "-"])
    def test_pages_show_every_row_once_also_those_without_a_value(self, team, space, key, sign):
        now = timezone.now()
        for n in range(7):
            row = make_context(space, f"c{n}")
            known = {"last_used_at": now - timedelta(minutes=n), "size_bytes": n}
            Context.unscoped.filter(pk=row.pk).update(tokens=5, **(known if n % 2 else {}))
        seen, path = [], f"/api/v1/contexts?ordering={sign}{key}&page_size=2"
        while path:
            page = team.get(path).json()
            seen += page["results"]
            path = page["next"]
        assert sorted(row["name"] for row in seen) == [f"c{n}" for n in range(7)]
        values = [row[key] for row in seen if row[key] is not None]
        assert values == sorted(values, reverse=bool(sign))
        if None in [row[key] for row in seen]:  # without a value: the least
            assert seen[-1 if sign else 0][key] is None
        back, path = [], page["previous"]
        while path:
            page = team.get(path).json()
            back = [*(row["name"] for row in page["results"]), *back]
            path = page["previous"]
        assert back == [row["name"] for row in seen][: len(back)]
        assert len(back) == 6

    def test_a_cursor_of_nobody_is_refused(self, team, space):
        make_context(space, "c")
        answer = team.get(f"/api/v1/contexts?cursor={uuid4().hex}")
        assert answer.status_code == 400
