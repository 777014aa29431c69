"""Contexts of a space whose chunks have a part for each KV group: from a node's report to what a
team reads over REST and on the page."""

import os

import pytest
from django.test import Client
from django.urls import reverse

from catalog.families import create_family
from catalog.models import Context, Space
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.formats.keys import BucketKeys
from neve.formats.parts import PartGroup, PartKind
from neve.index.tier import BlockTerms, Location, Tier
from storage import hot
from support.rows import make_person
from tenants.audit import Actor
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

CHUNK = 256
CHUNKS = 6
FULL = PartGroup(PartKind.FULL, None, 16, 40)
WINDOW = PartGroup(PartKind.WINDOW, 300, 16, 20)  # a request reads the last two chunks' parts
STATE = PartGroup(PartKind.STATE, None, 16, state_bytes=5000)
SIZES = {PartKind.FULL: 400, PartKind.WINDOW: 200, PartKind.STATE: 100}


class Node:
    """A node with these groups, which stores parts of one chain."""

    def __init__(self, caller, handshake, tenant, groups):
        self.tenant, self.groups, self.caller = tenant, groups, caller
        body = handshake | {"groups": [group.as_dict() for group in groups]}
        answer = caller.send("post", "/cache/v1/sessions", body)
        assert answer.status_code == 201, answer.content
        self.session = answer.json()["session"]
        self.space = Space.unscoped.get()
        self.tier = hot.hot_tier(tenant.pk)
        never = BlockTerms(flush_after_s=None)
        self.tier.set_policy(hot_bytes=1 << 22, cold_bytes=1 << 22, terms=never)
        self.hasher = BlockHasher(bytes.fromhex(self.space.fingerprint), CHUNK)
        self.chain = [os.urandom(16) for _ in range(CHUNKS)]

    def part(self, group, chunk, chain=None):
        return self.hasher.of_groups((chain or self.chain)[chunk], len(self.groups))[group]

    def store(self, group, chunks, chain=None):
        size = SIZES[self.groups[group].kind]
        ids = [self.part(group, chunk, chain) for chunk in chunks]
        for id_ in ids:
            key = BucketKeys(self.tenant.pk, 0).block(self.space.pk, id_)
            hot.admin().set(key, bytes(size), px=60_000)
        self.tier.commit(self.space.pk, [(id_, size, CHUNK) for id_ in ids])

    def report(self, name="repo-42", chain=None, **fields):
        chain = chain or self.chain
        body = {
            "session": self.session,
            "name": name,
            "block_ids": [id_.hex() for id_ in chain],
            "tokens": CHUNK * len(chain),
            **fields,
        }
        answer = self.caller.send("post", "/cache/v1/contexts", body)
        assert answer.status_code == 201, answer.content
        return f"/api/v1/contexts/{answer.json()['id']}"

    def evict(self, group, chunk):
        assert self.tier.forget(Tier.HOT, [self.part(group, chunk)]) == 1

    def move_to_s3(self, group, chunk):
        """As a flush and an eviction do."""
        id_ = self.part(group, chunk)
        self.tier.set_policy(
            hot_bytes=1 << 22, cold_bytes=1 << 22, terms=BlockTerms(flush_after_s=0)
        )
        self.tier.retain([id_], BlockTerms(flush_after_s=0), held=False, join=False, flush=True)
        self.tier.lease_dirty(lease_s=60, most_blocks=10, most_bytes=1 << 20)
        self.tier.open_segment(1)
        self.tier.flushed(1, [(id_, 64)])
        self.evict(group, chunk)

    def stored(self, chain=None):
        """(group, chunk) of each part that is in a tier."""
        places = [(g, c) for c in range(len(chain or self.chain)) for g in range(len(self.groups))]
        answers = self.tier.match([self.part(g, c, chain) for g, c in places])
        return {
            place
            for place, answer in zip(places, answers, strict=True)
            if isinstance(answer, Location)
        }

    def pinned(self):
        places = [(g, c) for c in range(CHUNKS) for g in range(len(self.groups))]
        answers = self.tier.match([self.part(g, c) for g, c in places])
        return {
            place
            for place, answer in zip(places, answers, strict=True)
            if isinstance(answer, Location) and answer.pinned_until_s
        }


@pytest.fixture
def make_node(clean_hot, node, handshake, tenant):
    return lambda *groups: Node(node, handshake, tenant, groups)


@pytest.fixture
def windowed(make_node):
    """All full parts; of the window those amid the chain were never stored."""
    made = make_node(FULL, WINDOW)
    made.store(0, range(CHUNKS))
    made.store(1, (0, 1, 4, 5))
    return made


def residency(team, path):
    found = team.get(path).json()["residency"]
    return {name: found[name] for name in ("lost", "usable_tokens", "usable_hot_tokens")}


def usable(chunks, *, lost, hot_chunks=None):
    return {
        "lost": lost,
        "usable_tokens": CHUNK * chunks,
        "usable_hot_tokens": CHUNK * (chunks if hot_chunks is None else hot_chunks),
    }


def page_of(tenant):
    browser = Client()
    browser.force_login(make_person(f"ann-{os.urandom(4).hex()}", **{tenant.slug: "viewer"}))

    def page(name, *of):
        address = reverse(f"dashboard:{name}", args=of)
        return " ".join(browser.get(address).content.decode().split())

    return page


class TestResumable:
    def test_window_parts_that_nobody_needs_are_not_lost(self, team, windowed):
        path = windowed.report()
        assert residency(team, path) == usable(CHUNKS, lost=0)
        found = team.get(path).json()["residency"]
        assert (found["hot"], found["hot_bytes"]) == (10, 6 * 400 + 4 * 200)
        assert (found["hot_tokens"], found["lost_tokens"]) == (CHUNKS * CHUNK, 0)

    def test_a_lost_full_part_ends_what_is_usable_before_it(self, team, windowed):
        path = windowed.report()
        windowed.evict(0, 2)
        assert residency(team, path) == usable(2, lost=1)
        found = team.get(path).json()["residency"]
        assert (found["hot_tokens"], found["lost_tokens"]) == ((CHUNKS - 1) * CHUNK, CHUNK)

    def test_a_lost_window_part_leaves_the_longest_length_that_still_works(self, team, windowed):
        path = windowed.report()
        windowed.evict(1, CHUNKS - 1)  # 5 and 4 chunks need the third one's part, 3 the second's
        assert residency(team, path) == usable(2, lost=1)
        windowed.store(1, [3])
        assert residency(team, path) == usable(5, lost=1)

    def test_what_is_cold_counts_with_what_is_hot(self, team, windowed):
        path = windowed.report()
        windowed.move_to_s3(0, 4)
        assert residency(team, path) == usable(CHUNKS, lost=0, hot_chunks=2)
        assert team.get(path).json()["residency"]["cold_tokens"] == CHUNK

    def test_each_part_is_listed_with_its_group_and_whether_it_is_needed(self, team, windowed):
        path = windowed.report()
        blocks = team.get(f"{path}?blocks=1").json()["residency"]["blocks"]
        assert [block["group"] for block in blocks] == [0, 1] * CHUNKS
        assert [block["is_needed"] for block in blocks] == [*[True, False] * 4, *[True, True] * 2]
        assert blocks[5] == {
            **{"id": windowed.part(1, 2).hex(), "tier": None, "reason": "never_stored"},
            **{"is_durable": False, "size_bytes": 0, "group": 1, "is_needed": False},
        }

    def test_a_state_counts_only_at_its_own_length(self, team, make_node):
        made = make_node(FULL, STATE)
        made.store(0, range(CHUNKS))
        made.store(1, (2, 4))
        path = made.report()
        assert residency(team, path) == usable(5, lost=1)
        assert team.get(path).json()["residency"]["states"] == 2
        made.store(1, [5])
        assert residency(team, path) == usable(CHUNKS, lost=0)
        made.evict(0, 3)
        assert residency(team, path) == usable(3, lost=1)

    def test_a_model_of_windows_alone_needs_only_the_end(self, team, make_node):
        made = make_node(WINDOW)
        made.store(0, (4, 5))
        path = made.report()
        assert residency(team, path) == usable(CHUNKS, lost=0)
        assert team.get(path).json()["residency"]["hot_tokens"] == CHUNKS * CHUNK
        made.evict(0, 4)
        assert residency(team, path) == usable(0, lost=1)
        assert team.get(path).json()["residency"]["lost_tokens"] == (CHUNKS - 1) * CHUNK


class TestActions:
    def test_a_pin_keeps_all_parts_that_are_stored(self, team, windowed):
        path = windowed.report()
        pinned = team.send("post", f"{path}/pin", {"for_s": 600}).json()
        assert (pinned["kept"], pinned["lost"]) == (10, 0)
        assert windowed.pinned() == windowed.stored()
        assert windowed.tier.usage().pinned_bytes == 6 * 400 + 4 * 200
        assert team.send("post", f"{path}/unpin").json()["kept"] == 0
        assert windowed.pinned() == set()

    def test_a_pin_tells_which_needed_parts_are_lost(self, team, windowed):
        path = windowed.report()
        windowed.evict(1, 5)
        windowed.evict(1, 0)  # nobody needs it
        pinned = team.send("post", f"{path}/pin", {"for_s": 600}).json()
        assert (pinned["kept"], pinned["lost"]) == (8, 1)

    def test_a_node_s_pin_follows_the_chain_with_all_parts(self, windowed):
        windowed.report(chain=windowed.chain[:4], pin_s=600)
        assert windowed.pinned() == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)}
        answer = windowed.caller.send(
            "post",
            "/cache/v1/contexts",
            {
                "session": windowed.session,
                "name": "repo-42",
                "block_ids": [id_.hex() for id_ in windowed.chain],
                "tokens": CHUNK * CHUNKS,
            },
        )
        assert answer.status_code == 200
        assert windowed.pinned() == windowed.stored()

    def test_extend_reaches_all_parts(self, team, windowed):
        windowed.tier.set_policy(
            hot_bytes=1 << 22, cold_bytes=1 << 22, terms=BlockTerms(ttl_s=60, flush_after_s=None)
        )
        path = windowed.report()
        answer = team.send("post", f"{path}/extend", {"for_s": 7200}).json()
        assert answer == {"extended": 10, "lost": 0}

    def test_expire_removes_all_parts_but_those_of_chunks_that_others_hold(self, team, windowed):
        path = windowed.report()
        fork = [*windowed.chain[:2], os.urandom(16)]
        for group in (0, 1):
            windowed.store(group, [2], fork)
        windowed.report("repo-43", fork)
        numbers = {"removed": 6, "removed_bytes": 4 * 400 + 2 * 200, "pinned": 0, "lost": 0}
        numbers["expires_at"] = None
        numbers |= {"shared": 4, "shared_bytes": 2 * 400 + 2 * 200}
        preview = team.send("post", f"{path}/expire", {"dry_run": True}).json()
        assert preview == {"dry_run": True, **numbers}
        assert team.send("post", f"{path}/expire").json() == {"dry_run": False, **numbers}
        assert windowed.stored() == {(0, 0), (0, 1), (1, 0), (1, 1)}
        assert windowed.stored(fork) == {(g, c) for g in (0, 1) for c in range(3)}
        gone = windowed.tier.match([windowed.part(1, 4)])
        assert gone == [MissReason.EXPIRED]

    def test_a_quota_counts_the_bytes_that_parts_have(self, windowed):
        usage = windowed.tier.usage()
        assert usage.hot_bytes == 6 * 400 + 4 * 200
        assert usage.hot_blocks == 10


class TestTable:
    def test_a_space_shows_its_groups(self, team, windowed):
        (space,) = team.get("/api/v1/spaces").json()["results"]
        assert space["groups"] == [FULL.as_dict(), WINDOW.as_dict()]

    def test_the_largest_part_decides_how_long_a_chunk_is(self, clean_hot, node, handshake):
        """A Gemma: parts of 2 MiB, not all of them together."""
        body = handshake | {"identity": handshake["identity"] | {"bytes_per_token": 6 << 16}}
        groups = [PartGroup(PartKind.FULL, None, 16, 1 << 16)]
        groups += [PartGroup(PartKind.WINDOW, 1024, 16, 1 << 16)] * 5
        tables = ([], groups, [PartGroup(PartKind.STATE, None, 16, state_bytes=5000)])
        chunks = []
        for number, table in enumerate(tables):
            body["identity"]["layout"] = f"layout {number}"
            sent = body | {"groups": [group.as_dict() for group in table]}
            answer = node.send("post", "/cache/v1/sessions", sent)
            assert answer.status_code == 201, answer.content
            chunks.append(answer.json()["space"]["chunk_tokens"])
        assert chunks == [16, 32, 16]

    def test_another_table_for_the_same_layout_is_refused(self, windowed, node, handshake):
        assert node.send("post", "/cache/v1/sessions", handshake).status_code == 201
        other = handshake | {"groups": [FULL.as_dict()]}
        problem = node.send("post", "/cache/v1/sessions", other)
        assert problem.status_code == 409
        assert problem.json()["field"] == "groups"

    def test_a_space_in_use_without_a_table_gets_none(self, clean_hot, node, handshake):
        """Its contexts would be read as parts that nobody stored."""
        assert node.send("post", "/cache/v1/sessions", handshake).status_code == 201
        late = handshake | {"groups": [FULL.as_dict(), WINDOW.as_dict()]}
        problem = node.send("post", "/cache/v1/sessions", late)
        assert (problem.status_code, problem.json()["field"]) == (409, "groups")

    def test_a_member_of_a_family_has_the_groups_of_its_producer(
        self, windowed, tenant, node, handshake
    ):
        create_family(
            tenant=tenant, name="llamas", space_id=windowed.space.pk, actor=Actor("ann", "req-1")
        )
        body = handshake | {"family": {"name": "llamas", "device": "cpu"}}
        body |= {"identity": handshake["identity"] | {"model": "another"}}
        same, other = ([group.as_dict() for group in table] for table in ([FULL, WINDOW], [FULL]))
        answer = node.send("post", "/cache/v1/sessions", body | {"groups": same})
        assert answer.status_code == 201, answer.content
        refused = node.send("post", "/cache/v1/sessions", body | {"groups": other})
        assert (refused.status_code, refused.json()["field"]) == (409, "groups")

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"kind": "half"}, "kind"),
            ({"span_tokens": None}, "span_tokens"),
            ({"block_tokens": 0}, "block_tokens"),
            ({"bytes_per_token": "20"}, "bytes_per_token"),
            ({"bytes_per_layer": 1}, "bytes_per_layer"),
        ],
    )
    def test_a_malformed_group_is_explained(self, clean_hot, node, handshake, change, field):
        body = handshake | {"groups": [FULL.as_dict(), WINDOW.as_dict() | change]}
        problem = node.send("post", "/cache/v1/sessions", body)
        assert problem.status_code == 400
        assert field in problem.content.decode()

    def test_a_context_stores_its_chain_once(self, tenant, windowed):
        windowed.report()
        with tenant_scope(tenant.pk):
            context = Context.objects.get()
        assert context.ids() == windowed.chain
        assert context.blocks == 2 * CHUNKS


class TestPages:
    def test_the_context_says_up_to_where_it_is_resumable(self, tenant, windowed):
        windowed.report()
        page = page_of(tenant)
        address = "context", Context.unscoped.get().pk
        can = "A request can load 1536 of 1536 tokens"
        assert f"{can}, 1536 without reading S3." in page(*address)
        spaces = page("spaces")
        assert "full, 40<span" in spaces
        assert "window 300, 20<span" in spaces
        windowed.move_to_s3(0, 4)
        assert f"{can}, 512 without reading S3." in page(*address)

    def test_states_are_shown(self, tenant, make_node):
        made = make_node(FULL, STATE, STATE)
        made.store(0, range(CHUNKS))
        made.store(1, (2, 4))
        made.store(2, (2,))
        made.report()
        page = page_of(tenant)
        shown = page("context", Context.unscoped.get().pk)
        assert "1 state of linear attention is stored" in shown
        assert "A request can load 768 of 1536 tokens, 768 without" in shown
        assert "2 × state, 4.88" in page("spaces")
