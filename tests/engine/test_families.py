"""An engine that leaves its family: KV of the family, which its own prefix cache still has, never
becomes its own KV."""

from types import SimpleNamespace

import pytest

from neve.datapath.client import Match
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.formats.space import SpaceIdentity
from neve.node.membership import Membership, MemberState
from neve.node.stats import Stats
from support.engine_side import CHUNK, TOKENS, answer, begin, note, side_over
from support.rows import IDENTITY

TABLE = [list(range(1, 11))]


class Member:
    """A link and its client in one: an engine whose state the platform tells at each handshake."""

    def __init__(self) -> None:
        self.hasher = BlockHasher(b"f" * 32, CHUNK)
        self.stats = Stats()
        self.sessions = 0

    def handshake(self, state):
        identity = SpaceIdentity.from_dict(IDENTITY)
        self.sessions += 1
        self.session = SimpleNamespace(
            id=f"session-{self.sessions}",
            identity=identity,
            tenant_id=1,
            chunk_tokens=CHUNK,
            membership=Membership("llamas", state, identity),
        )

    @property
    def client(self):
        return self

    def release(self):
        pass

    def match(self, ids, *, deadline_s):
        return Match([], MissReason.NEVER_STORED)

    match_again = match


@pytest.fixture
def member():
    return Member()


@pytest.fixture
def side(member):
    made = side_over([member], family="llamas")
    yield made
    made.close()


def saved(side, request_id, *, local_tokens):
    """How many chunks are stored of a prompt whose first tokens the engine's own cache has."""
    begin(side, request_id)
    assert answer(side, request_id, local_tokens) == 0
    return len(side.saves.plan(request_id, len(TOKENS), TABLE))


@pytest.mark.parametrize("later", [MemberState.REFUSED, MemberState.ATTESTING])
def test_a_detached_engine_stores_no_kv_that_follows_on_the_family_s(member, side, later):
    member.handshake(MemberState.ATTACHED)
    assert saved(side, "attached", local_tokens=0) == 4
    member.handshake(later)
    assert saved(side, "follows", local_tokens=CHUNK) == 0
    assert saved(side, "whole", local_tokens=0) == 4
    side.reset()
    note(side, weights={"worker": (1, b"")})  # those of the start
    assert saved(side, "after", local_tokens=CHUNK) == 4


def test_an_engine_that_never_shared_stores_what_follows_on_its_own_kv(member, side):
    member.handshake(MemberState.REFUSED)
    assert saved(side, "own", local_tokens=CHUNK) == 4
