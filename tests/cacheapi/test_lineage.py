"""What contexts share: `diff` of two, and `lineage` of a space, over REST."""

import os
import tracemalloc
from uuid import uuid4

import pytest

from catalog.models import Context
from contexts.lineage import lineage
from neve.formats.parts import PartGroup, PartKind
from support.rows import make_context, make_key, make_space, make_tenant
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

CHUNK = 256


def ids(count):
    return [os.urandom(16) for _ in range(count)]


@pytest.fixture
def space(tenant):
    return make_space(tenant)


class TestDiff:
    @pytest.fixture
    def diff(self, team):
        def send(one, other):
            answer = team.get(f"/api/v1/contexts/{one.pk}/diff?with={other.pk}")
            assert answer.status_code == 200, answer.content
            return answer.json()

        return send

    def test_it_counts_the_common_beginning_and_what_follows(self, space, diff):
        head = ids(3)
        one, other = (
            make_context(space, "one", head + ids(2)),
            make_context(space, "b", head + ids(4)),
        )
        assert diff(one, other) == {
            "same_space": True,
            "shared_tokens": 3 * CHUNK,
            "shared_blocks": 3,
            "parts_at_token": 3 * CHUNK,
            "only_this": {"tokens": 2 * CHUNK, "blocks": 2},
            "only_other": {"tokens": 4 * CHUNK, "blocks": 4},
        }

    def test_a_context_that_goes_on_behind_another_parts_nowhere(self, space, diff):
        head = ids(3)
        one, other = make_context(space, "one", head), make_context(space, "b", head + ids(4))
        found = diff(one, other)
        assert (found["shared_blocks"], found["parts_at_token"]) == (3, None)
        assert found["only_this"] == {"tokens": 0, "blocks": 0}
        assert diff(one, one)["shared_tokens"] == 3 * CHUNK

    def test_contexts_that_part_in_the_first_chunk_share_nothing(self, space, diff):
        one, other = make_context(space, "one"), make_context(space, "b")
        found = diff(one, other)
        assert (found["shared_tokens"], found["parts_at_token"]) == (0, 0)

    def test_contexts_of_two_spaces_share_nothing(self, tenant, space, diff):
        chain = ids(3)
        one, other = (
            make_context(space, "one", chain),
            make_context(make_space(tenant, "b"), "b", chain),
        )
        found = diff(one, other)
        assert found["same_space"] is False
        assert (found["shared_tokens"], found["parts_at_token"]) == (0, None)
        assert found["only_other"] == {"tokens": 3 * CHUNK, "blocks": 3}

    def test_shards_of_a_chunk_count_as_blocks_and_their_tokens_once(self, space, diff):
        """Two shards: the chain has two ids for each chunk."""
        head = ids(4)
        one, other = (
            make_context(space, "one", head + ids(2)),
            make_context(space, "b", head + ids(4)),
        )
        Context.unscoped.filter(pk=one.pk).update(tokens=3 * CHUNK)
        Context.unscoped.filter(pk=other.pk).update(tokens=4 * CHUNK)
        found = diff(one, other)
        assert (found["shared_tokens"], found["shared_blocks"]) == (2 * CHUNK, 4)
        assert found["only_this"] == {"tokens": CHUNK, "blocks": 2}

    def test_kv_groups_count_as_blocks_of_each_chunk(self, space, diff):
        groups = [PartGroup(PartKind.FULL, None, 16, 40), PartGroup(PartKind.WINDOW, 300, 16, 20)]
        space.groups = [group.as_dict() for group in groups]
        space.save()
        head = ids(3)
        one, other = (
            make_context(space, "one", head + ids(1)),
            make_context(space, "b", head + ids(2)),
        )
        Context.unscoped.filter(pk=one.pk).update(blocks=8)
        Context.unscoped.filter(pk=other.pk).update(blocks=10)
        found = diff(one, other)
        assert (found["shared_tokens"], found["shared_blocks"]) == (3 * CHUNK, 6)
        assert found["only_other"] == {"tokens": 2 * CHUNK, "blocks": 4}

    def test_the_other_context_is_named_and_seen_by_the_caller(self, space, team, operator):
        one, other = make_context(space), make_context(make_space(make_tenant()))
        path = f"/api/v1/contexts/{one.pk}/diff"
        for query, field in (("", "with"), ("?with=x", "with"), ("?whit=x", "whit")):
            answer = team.get(path + query)
            assert (answer.status_code, answer.json()["field"]) == (400, field)
        assert team.get(f"{path}?with={uuid4()}").status_code == 404
        assert team.get(f"{path}?with={other.pk}").status_code == 404
        assert operator.get(f"{path}?with={other.pk}").json()["same_space"] is False


class TestLineage:
    @pytest.fixture
    def get(self, team, space):
        def send(**query):
            answer = team.get(f"/api/v1/spaces/{space.pk}/lineage", query)
            assert answer.status_code == 200, answer.content
            return answer.json()

        return send

    @pytest.fixture
    def family(self, space):
        """system (3 blocks) shared by five; tool (2 more) by three of them; one context apart."""
        system, tool = ids(3), ids(2)
        for name, chain in {
            "a": system + tool + ids(1),
            "b": system + tool + ids(2),
            "tool": system + tool,
            "c": system + ids(5),
            "d": system + ids(4),
            "apart": ids(2),
        }.items():
            make_context(space, name, chain)

    def test_a_node_is_a_beginning_that_several_contexts_share(self, family, get):
        root = get()
        assert (root["tokens"], root["context_count"], root["more"]) == (0, 6, 0)
        assert names(root) == ["apart"]
        (system,) = root["children"]
        assert (system["tokens"], system["blocks"], system["context_count"]) == (3 * CHUNK, 3, 5)
        assert names(system) == ["c", "d"]
        (tool,) = system["children"]
        assert (tool["tokens"], tool["blocks"], tool["context_count"]) == (5 * CHUNK, 5, 3)
        assert names(tool) == ["b", "a", "tool"]
        assert tool["children"] == []

    def test_what_the_limits_cut_off_is_counted(self, family, get):
        (system,) = get(depth=1)["children"]
        assert (system["children"], system["more"]) == ([], 3)
        (system,) = get(limit=1)["children"]
        assert (names(system), system["more"]) == (["c", "d"], 3)
        root = get(min_tokens=4 * CHUNK)
        assert names(root) == ["c", "d", "apart"]
        assert [child["tokens"] for child in root["children"]] == [5 * CHUNK]
        assert get(min_tokens=99 * CHUNK)["children"] == []

    def test_a_node_lists_its_longest_contexts(self, space, get):
        head = ids(1)
        for n in range(15):
            make_context(space, f"c{n}", head + ids(n + 1))
        (node,) = get()["children"]
        assert (names(node)[0], len(node["contexts"]), node["more"]) == ("c14", 10, 5)

    def test_the_largest_beginnings_come_first(self, space, get):
        for count in (2, 4, 3):
            head = ids(1)
            for n in range(count):
                make_context(space, f"{count}-{n}", head + ids(1))
        assert [child["context_count"] for child in get()["children"]] == [4, 3, 2]
        cut = get(limit=2)
        assert [child["context_count"] for child in cut["children"]] == [4, 3]
        assert cut["more"] == 2

    def test_expired_contexts_and_other_spaces_are_left_out(self, tenant, space, get):
        chain = ids(2)
        gone = make_context(space, "gone", chain)
        Context.unscoped.filter(pk=gone.pk).update(expired_at=gone.created_at)
        make_context(make_space(tenant, "other"), "other", chain)
        assert get() == {
            **{"tokens": 0, "blocks": 0, "context_count": 0},
            **{"contexts": [], "children": [], "more": 0},
        }

    def test_equal_chains_and_shards_count_right(self, space, get):
        chain = ids(4)
        for name in ("one", "two"):
            made = make_context(space, name, chain)
            Context.unscoped.filter(pk=made.pk).update(tokens=2 * CHUNK)
        (node,) = get()["children"]
        assert (node["tokens"], node["blocks"], names(node)) == (2 * CHUNK, 4, ["one", "two"])

    def test_bounds_are_checked(self, space, team):
        path = f"/api/v1/spaces/{space.pk}/lineage"
        for query in ("limit=0", "limit=1001", "depth=-1", "depth=x", "min_tokens=0", "lmit=5"):
            answer = team.get(f"{path}?{query}")
            assert answer.status_code == 400, query
            assert answer.json()["field"] == query.partition("=")[0]
        stranger = type(team)(make_key(make_tenant(), "team"))
        assert stranger.get(path).status_code == 404

    def test_memory_does_not_grow_with_the_bytes_of_the_chains(self, tenant, space):
        """300 chains have 40 MB; a page of READ_AT_ONCE has 7 MB."""
        head = b"".join(ids(8000))
        with tenant_scope(tenant.pk):
            Context.objects.bulk_create(
                Context(
                    tenant=tenant, space=space, name=f"c{n}", chain=head + os.urandom(16 * 192),
                    blocks=8192, tokens=CHUNK * 8192,
                )
                for n in range(300)
            )  # fmt: skip
        tracemalloc.start()
        root = lineage(space, limit=10, depth=5, min_tokens=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (node,) = root.children
        assert (node.blocks, node.context_count) == (8000, 300)
        assert peak < 20 << 20


def names(node):
    return [each["name"] for each in node["contexts"]]
