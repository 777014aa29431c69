"""Stores, rules of moves and moves over REST, for operators."""

import re
from dataclasses import replace

import pytest
from django.utils import timezone

from catalog import stores
from catalog.models import MoveRule, Segment, SegmentCopy, Space, Store
from retention import provisioning
from storage import s3
from storage.s3 import ensure_bucket
from support.rows import make_segment, make_space
from support.stores import make_rule, make_store
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


@pytest.fixture(autouse=True)
def default_store(tenant):
    """A migration made it; tests that empty the database take it away."""
    return stores.default_row()


@pytest.fixture(autouse=True)
def servers(s3):
    ensure_bucket()


@pytest.fixture
def place():
    """A bucket that exists, as a body."""
    row = make_store("found")
    from catalog.stores import bucket_of

    bucket = bucket_of(row)
    row.delete()
    return {
        "name": "nvme", "endpoint": bucket.endpoint, "bucket": bucket.name,
        "region": bucket.region, "access_key": bucket.access_key,
        "secret_key": bucket.secret_key,
    }  # fmt: skip


def test_a_store_is_added_changed_and_removed(operator, place):
    answer = operator.send("post", "/api/v1/stores", place | {"gib_month": "0.1", "priority": 10})
    assert answer.status_code == 201, answer.content
    row = answer.json()
    assert (row["name"], row["gib_month"], row["has_secret_key"]) == ("nvme", "0.1", True)
    assert place["secret_key"] not in answer.content.decode()
    listed = operator.get("/api/v1/stores").json()["results"]
    assert [each["name"] for each in listed] == ["nvme", "default"]
    changed = operator.send("patch", f"/api/v1/stores/{row['id']}", {"priority": 200})
    assert changed.json()["priority"] == 200
    removed = operator.delete(f"/api/v1/stores/{row['id']}")
    assert (removed.status_code, removed.json()) == (200, {"lost_segments": 0, "rules": []})
    actions = AuditEvent.unscoped.filter(object_type="store").values_list("action", "after")
    assert {action for action, _ in actions} == {"store.add", "store.change", "store.remove"}
    assert place["secret_key"] not in str(list(actions))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"secret_key": "wrong-wrong-wrong"}, "secret_key"),
        ({"access_key": "nobody"}, "access_key"),
        ({"bucket": "mistyped"}, "bucket"),
        ({"bucket": "_!"}, "bucket"),
        ({"name": "bad name!"}, "name"),
        ({"name": "Archive"}, "name"),
        ({"endpoint": "http://127.0.0.1:9"}, "endpoint"),
        ({"endpoint": "ftp://x"}, "endpoint"),
        ({"endpoint": "http://169.254.169.254/latest"}, "endpoint"),
        ({"endpoint": "http://169.254.1.1"}, "endpoint"),
        ({"endpoint": "http://[fe80::1]"}, "endpoint"),
        ({"endpoint": "http://[::ffff:169.254.169.254]:80"}, "endpoint"),
        ({"endpoint": "http://[fd00:ec2::254]"}, "endpoint"),
        ({"endpoint": "http://0xa9fea9fe"}, "endpoint"),
        ({"credentials_env": "HOME"}, "credentials_env"),
        ({"credentials_env": "NEVE_STORE_NONE"}, "credentials_env"),
        ({"gib_month": "cheap"}, "gib_month"),
    ],
)
def test_a_store_that_does_not_work_is_refused_by_name(operator, place, change, field):
    answer = operator.send("post", "/api/v1/stores", place | change)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.content
    assert not Store.objects.filter(name="nvme").exists()


def test_a_mistyped_bucket_is_not_made(operator, place):
    operator.send("post", "/api/v1/stores", place | {"bucket": "mistyped"})
    assert not replace(s3.default(), name="mistyped").exists()


def test_tenants_reach_no_address_of_stores_and_rules(team, node, tenant, place):
    store = make_store("archive")
    rule = make_rule(store)
    addresses = (
        *("/api/v1/stores", f"/api/v1/stores/{store.pk}", "/api/v1/move-rules"),
        *(f"/api/v1/move-rules/{rule.pk}", f"/api/v1/move-rules/{rule.pk}/dry-run"),
    )
    for client in (team, node):
        for path in addresses:
            assert client.get(path).status_code in (403, 404, 405), path
            for verb, body in (("post", place), ("patch", {"priority": 1}), ("delete", None)):
                answer = client.send(verb, path, body)
                assert answer.status_code in (403, 404, 405), (verb, path)
                assert store.bucket not in answer.content.decode()
    assert set(Store.objects.values_list("name", flat=True)) == {"default", "archive"}
    assert MoveRule.objects.get().pk == rule.pk


def test_a_secret_is_in_no_answer_and_in_no_audit(operator, place, caplog):
    caplog.set_level("DEBUG", "neve")
    row = operator.send("post", "/api/v1/stores", place).json()
    path, secrets = f"/api/v1/stores/{row['id']}", (place["secret_key"], "wrong-wrong-wrong")
    said = [
        operator.send("patch", path, {"secret_key": secrets[1]}),  # S3 refuses it
        operator.send("patch", path, {"secret_key": secrets[0]}),
        operator.get(path),
        operator.get("/api/v1/stores"),
        operator.get("/api/v1/audit"),
        operator.delete(path),
    ]
    assert [each.status_code for each in said] == [400, 200, 200, 200, 200, 200]
    told = [each.content.decode() for each in said] + [caplog.text]
    told += map(str, AuditEvent.unscoped.values_list("before", "after"))
    assert not [text for text in told for secret in secrets if secret in text]


def test_each_change_of_a_rule_is_audited(operator, place, tenant):
    make_store("archive")
    rule = {"name": "old", "target": "archive", "least_age_s": 5, "tenant": tenant.slug}
    path = f"/api/v1/move-rules/{operator.send('post', '/api/v1/move-rules', rule).json()['id']}"
    operator.send("patch", path, {"least_age_s": 6})
    operator.delete(path)
    rows = AuditEvent.unscoped.filter(object_type="moverule").order_by("pk")
    assert list(rows.values_list("action", flat=True)) == [
        *("move_rule.add", "move_rule.change", "move_rule.remove"),
    ]
    assert set(rows.values_list("tenant", flat=True)) == {None}  # a tenant reads none of it
    change = rows[1]
    assert (change.before["least_age_s"], change.after["least_age_s"]) == (5, 6)


def test_the_default_store_keeps_its_place_and_takes_prices(operator, place):
    row = operator.get("/api/v1/stores?name=default").json()["results"][0]
    path = f"/api/v1/stores/{row['id']}"
    assert row["bucket"]
    assert operator.send("patch", path, {"gib_month": "0.02"}).json()["gib_month"] == "0.02"
    assert operator.send("patch", path, {"bucket": "other"}).json()["field"] == "bucket"
    assert operator.delete(path).status_code == 409


def test_a_store_with_segments_says_what_would_be_lost_before_it_goes(operator, tenant, clean_hot):
    provisioning.provision_tenant(tenant)
    store = make_store("lost")
    segment = make_segment(make_space(tenant), store=store, size_bytes=7)
    path = f"/api/v1/stores/{store.pk}"
    assert operator.send("patch", path, {"bucket": "another"}).status_code == 409
    make_rule(store, name="to-it")
    copied = make_segment(segment.space, store=store, size_bytes=9)
    with tenant_scope(tenant.pk):
        SegmentCopy.objects.create(segment=copied, store=None, state="kept", size_bytes=9)
    refused = operator.delete(path)
    found = {name: refused.json()[name] for name in ("segments", "lost_segments", "rules")}
    assert found == {"segments": 2, "lost_segments": 1, "rules": 1}
    assert "1 lost segments, 1 rules" in refused.json()["detail"]
    assert operator.get(path).json()["stored_bytes"] == 16
    removed = operator.delete(f"{path}?confirm=lost")
    assert removed.json() == {"lost_segments": 1, "rules": ["to-it"]}
    with tenant_scope(tenant.pk):
        assert not Segment.objects.filter(pk=segment.pk).exists()


def test_rules_name_stores_and_a_dry_run_counts_the_money(operator, tenant):
    store = make_store("archive", gib_month="0.001")
    segment = make_segment(make_space(tenant), size_bytes=1 << 30)
    Segment.unscoped.update(indexed_at=segment.created_at)
    rule = {"name": "old", "target": "archive", "source": "default", "least_age_s": 0}
    answer = operator.send("post", "/api/v1/move-rules", rule | {"is_active": False})
    assert answer.status_code == 201, answer.content
    path = f"/api/v1/move-rules/{answer.json()['id']}"
    run = operator.send("post", f"{path}/dry-run").json()
    (way,) = run["ways"]
    assert (way["source"], way["target"], way["bytes"]) == ("default", "archive", 1 << 30)
    assert float(way["saved_a_month"]) > 0
    assert (run["fitting"], run["unpaid"], run["currency"]) == (1, 0, "USD")
    assert float(way["cost"]) > 0
    assert way["away"] == []
    Store.objects.filter(pk=store.pk).update(failing_since=timezone.now())
    assert operator.send("post", f"{path}/dry-run").json()["ways"][0]["away"] == ["archive"]
    assert operator.send("patch", path, {"target": "default"}).json()["field"] == "target"
    assert operator.send("patch", path, {"target": "none"}).json()["field"] == "target"
    assert operator.send("patch", path, {"is_active": True}).json()["is_active"] is True
    assert operator.delete(path).status_code == 204
    assert not MoveRule.objects.exists()
    assert store.pk


def test_a_dry_run_without_moves_says_how_many_fit_and_why_they_stay(operator, tenant):
    make_store("archive", gib_month="5")  # dearer than the default
    segment = make_segment(make_space(tenant), size_bytes=600)
    Segment.unscoped.update(indexed_at=segment.created_at)
    rule = {"name": "old", "target": "archive", "least_age_s": 0, "payback_days": 30}
    row = operator.send("post", "/api/v1/move-rules", rule).json()
    path = f"/api/v1/move-rules/{row['id']}"
    run = operator.send("post", f"{path}/dry-run").json()
    assert (run["ways"], run["fitting"], run["unpaid"]) == ([], 1, 1)
    operator.send("patch", path, {"payback_days": None})
    (way,) = operator.send("post", f"{path}/dry-run").json()["ways"]
    assert re.fullmatch(r"-0\.0+\d+", way["saved_a_month"])  # far below a cent, and no exponent
    Segment.unscoped.update(moved_at=timezone.now())
    run = operator.send("post", f"{path}/dry-run").json()
    assert (run["ways"], run["fitting"], run["resting"]) == ([], 1, 1)


def test_a_rule_without_conditions_says_so(operator):
    make_store("archive")
    rule = {"name": "all", "target": "archive", "source": "default", "is_active": False}
    row = operator.send("post", "/api/v1/move-rules", rule).json()
    assert row["warnings"] == [
        "It has no condition: it moves every segment of default to archive and keeps it there."
    ]
    path = f"/api/v1/move-rules/{row['id']}"
    assert operator.send("patch", path, {"least_age_s": 5}).json()["warnings"] == []


def test_a_segment_says_in_which_store_it_is(team, tenant):
    make_segment(make_space(tenant))
    store = make_store("archive")
    make_segment(Space.unscoped.get(), store=store, size_bytes=9)
    rows = team.get("/api/v1/segments").json()["results"]
    assert {row["store"] for row in rows} == {"default", "archive"}
    groups = team.get("/api/v1/usage?by=store").json()["groups"]
    assert {each["name"]: each["totals"]["used_bytes"] for each in groups}["archive"] == 9


def test_a_tenant_sees_its_moves_but_not_the_names_of_rules(operator, team, tenant):
    segment, store = make_segment(make_space(tenant)), make_store("archive")
    with tenant_scope(tenant.pk):
        SegmentCopy.objects.create(segment=segment, store=store, state="kept", reason="dear ones")

    def told(caller):
        (move,) = caller.get("/api/v1/moves").json()["results"]
        return move["store"], move["reason"]

    assert told(team) == ("archive", "")
    assert told(operator) == ("archive", "dear ones")


def test_a_node_reads_the_nearest_copy_and_warms_its_segment(node, tenant, handshake, clean_hot):
    provisioning.provision()
    store = make_store("nvme", priority=50)
    opened = node.send(
        "post", "/cache/v1/sessions", handshake | {"near_stores": ["default"]}
    ).json()
    plain = node.send("post", "/cache/v1/sessions", handshake | {"node": "other"}).json()
    segment = make_segment(make_space(tenant, "s"))
    with tenant_scope(tenant.pk):
        SegmentCopy.objects.create(segment=segment, store=store, state="kept")

    def address(session):
        path = f"/cache/v1/sessions/{session['session']}/segments?ids={segment.pk}"
        return node.get(path).json()["segments"][str(segment.pk)]

    assert f"/{store.bucket}/" not in address(opened)  # it said what is near
    assert f"/{store.bucket}/" in address(plain)  # by priority
    segment.refresh_from_db()
    assert segment.heat == pytest.approx(1.0, abs=0.01)  # within one minute


def test_a_node_learns_that_a_segments_store_is_away(node, tenant, handshake, clean_hot):
    provisioning.provision()
    opened = node.send("post", "/cache/v1/sessions", handshake).json()
    store = make_store("nvme", failing_since=timezone.now())
    here = make_segment(make_space(tenant, "s"))
    there = make_segment(here.space, store=store)
    path = f"/cache/v1/sessions/{opened['session']}/segments?ids={here.pk},{there.pk},{10**9}"
    answer = node.get(path).json()
    assert (list(answer["segments"]), answer["away"]) == ([str(here.pk)], [there.pk])
    with tenant_scope(tenant.pk):
        SegmentCopy.objects.create(segment=there, store=None, state="kept")
    assert node.get(path).json()["away"] == []
