"""Which blocks of a space left, over REST."""

from dataclasses import replace

import pytest

from neve.formats.keys import BucketKeys, bucket_of
from retention import provisioning
from storage import hot
from storage.hot_removals import MOST_CURSOR
from support.caller import Caller
from support.rows import make_key, make_space, make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

BUCKETS = 2
BLOCK = b"x" * 100
IDS = [n.to_bytes(4, "big") + b"i" * 12 for n in range(6)]

LONGEST = "A" * MOST_CURSOR  # of 1,536 times


@pytest.fixture
def space(tenant, clean_hot, settings):
    settings.ENV = replace(settings.ENV, hot_buckets=BUCKETS)
    provisioning.provision_tenant(tenant)
    return make_space(tenant)


@pytest.fixture
def store(space):
    def store(*ids):
        for id_ in ids:
            key = BucketKeys(space.tenant_id, bucket_of(id_, BUCKETS)).block(space.pk, id_)
            hot.execute("SET", key, BLOCK, "PX", 60_000)
        hot.hot_tier(space.tenant_id).commit(space.pk, [(id_, len(BLOCK), 16) for id_ in ids])

    return store


@pytest.fixture
def removals(space, team):
    def get(after=None):
        query = "" if after is None else f"?after={after}"
        answer = team.get(f"/api/v1/spaces/{space.pk}/removals{query}")
        assert answer.status_code == 200, answer.content
        return answer.json()

    return get


def test_a_reader_goes_on_behind_its_cursor(space, store, removals):
    store(*IDS)
    begun = removals()
    assert (begun["removed"], begun["reset"]) == ([], False)
    hot.hot_tier(space.tenant_id).expire(IDS[:4])
    found = removals(begun["cursor"])
    assert sorted(found["removed"]) == [id_.hex() for id_ in IDS[:4]]
    assert not found["reset"]
    assert removals(found["cursor"]) == {**found, "removed": []}
    store(IDS[0])  # it is there again
    assert sorted(removals(begun["cursor"])["removed"]) == [id_.hex() for id_ in IDS[1:4]]


def test_a_reader_whose_removals_are_not_all_known_starts_anew(space, store, removals):
    store(*IDS)
    begun = removals()
    hot.execute("UNLINK", *BucketKeys(space.tenant_id, 1).all_bookkeeping)
    again = removals(begun["cursor"])
    assert again["reset"]
    assert not removals(again["cursor"])["reset"]
    hot.execute("UNLINK", *(BucketKeys(space.tenant_id, 1).block(space.pk, id_) for id_ in IDS))


NO_CURSORS = ["", "x", "AAAA", "0" * 11, "__________8", "*", "A" * 5000, LONGEST + "A" * 32]


@pytest.mark.parametrize("after", NO_CURSORS)
def test_what_is_no_cursor_is_refused_by_name(space, team, after):
    path = f"/api/v1/spaces/{space.pk}/removals"
    answer = team.get(f"{path}?after={after}")
    assert answer.status_code == 400
    assert answer.json()["field"] == "after"
    headers = {"Accept": "text/event-stream", "Last-Event-ID": after}
    answer = team.get(path, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["field"] == "Last-Event-ID"


def test_a_cursor_of_another_number_of_buckets_is_a_reset(removals):
    assert removals(LONGEST)["reset"]


def test_other_tenants_spaces_do_not_exist(space, node):
    path = f"/api/v1/spaces/{space.pk}/removals"
    other = Caller(make_key(make_tenant("other"), "team"))
    assert other.get(path).status_code == 404
    assert other.get(path, headers={"Accept": "text/event-stream"}).status_code == 404
    assert node.get(path).status_code == 403
