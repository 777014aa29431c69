"""Attestation: may this engine use the KV of a family, whose producer has other weights?

Names prove nothing. Until the proof is complete, the engine computes every prompt that it finds in
the family, and the blocks are fetched too and compared to the bit. Meanwhile, and after a
difference, its KV goes under ids of its own, which nobody else of the family finds.

A block that is equal but for rounding (a batch of another shape) is no proof: it makes the proof
longer, and `MOST_NEAR` of them refuse the engine.
"""

import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b
from typing import Final

from neve import log_events
from neve.datapath.client import Client
from neve.engine.canary import Verdict
from neve.engine.link import Link
from neve.engine.step import Place
from neve.engine.telemetry import Telemetry
from neve.errors import NeveError, Unavailable
from neve.node.membership import Attested, MemberState

# A proof needs so many equal chunks, from so many prompts, at so many lengths of a prefix.
BLOCKS: Final = 8
PROMPTS: Final = 2
LENGTHS: Final = 3
# Equal but for rounding: so many refuse, and each demands `BLOCKS` more equal ones.
MOST_NEAR: Final = 8
# Chunks of one prompt that are compared: they take staging from saves.
EACH_PROMPT: Final = 8
RETRY_S: Final = 2.0
# On shutdown, the call under way gets this long.
CLOSE_S: Final = 2.0


class Proof:
    """What was compared so far. `parts`: ranks that compare a part of each block."""

    def __init__(self, *, parts: int, groups: int) -> None:
        self._parts = parts
        self._groups = groups
        self._asked: dict[bytes, tuple[int, int, bytes]] = {}  # id → group, chunk, prompt
        self._parts_same: Counter[bytes] = Counter()
        self._same: dict[bytes, tuple[int, int, bytes]] = {}
        self._near: set[bytes] = set()

    def chunks(self, found: Mapping[int, Collection[bytes]]) -> list[int]:
        """Which of the `found` chunks to compare: not yet proven, spread over the prompt.

        `found`: for each chunk the first id of each group that has a block.
        """
        unproven = [chunk for chunk, ids in found.items() if not self._same.keys() >= set(ids)]
        if len(unproven) <= EACH_PROMPT:
            return unproven
        last = len(unproven) - 1
        return sorted({unproven[n * last // (EACH_PROMPT - 1)] for n in range(EACH_PROMPT)})

    def expect(self, block_id: bytes, *, group: int, chunk: int, prompt: bytes) -> None:
        """A worker compares this block. `prompt`: the first id of its chain."""
        self._asked[block_id] = (group, chunk, prompt)

    def expects(self, block_id: bytes) -> bool:
        return block_id in self._asked

    def asked(self) -> Collection[bytes]:
        """Ids of all blocks that were expected."""
        return self._asked.keys()

    def note(self, block_id: bytes, verdict: Verdict) -> None:
        if verdict is Verdict.SAME:
            self._parts_same[block_id] += 1
            if self._parts_same[block_id] >= self._parts and block_id not in self._near:
                self._same[block_id] = self._asked[block_id]
        elif verdict is Verdict.NEAR:
            self._near.add(block_id)
            self._same.pop(block_id, None)

    @property
    def blocks(self) -> int:
        return len(self._same)

    @property
    def near(self) -> int:
        return len(self._near)

    @property
    def is_complete(self) -> bool:
        """Each KV cache group needs `LENGTHS`; all together the rest."""
        lengths = [
            {chunk for of_group, chunk, _ in self._same.values() if of_group == group}
            for group in range(self._groups)
        ]
        prompts = {prompt for _, _, prompt in self._same.values()}
        return (
            len(self._same) >= BLOCKS * (1 + len(self._near))
            and len(prompts) >= PROMPTS
            and all(len(each) >= LENGTHS for each in lengths)
        )


class Attestation:
    """One engine in a family. All methods belong to the scheduler's thread; reports go out on a
    thread of their own. The platform decides: this engine shares KV once its answer says so.
    """

    def __init__(
        self, links: Sequence[Link], telemetry: Telemetry, *, parts: int, groups: int
    ) -> None:
        """`links`: one a space. `parts`, `groups`: see `Proof`."""
        self._links = links
        self._telemetry = telemetry
        self._parts = parts
        self._groups = groups
        self._state: MemberState | None = None
        self._weights = b""
        self._sessions: tuple[str, ...] = ()
        self._proof = Proof(parts=parts, groups=groups)
        self._places: dict[bytes, Place] = {}
        self._stale: set[bytes] = set()  # blocks that earlier proofs asked for
        self._round = 0  # of proofs: answers of earlier ones are not taken
        self._answers: deque[tuple[int, MemberState]] = deque()
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, "neve-attest")
        # Whether the engine's own prefix cache may hold KV of other members, loaded since a reset.
        self.has_shared = False

    @property
    def proof(self) -> Proof:
        return self._proof

    def state(self) -> MemberState | None:
        """Asked when a request's chain begins. None: not known (yet), so share nothing."""
        while self._answers:
            number, state = self._answers.popleft()
            if number == self._round:
                self._become(state)
        clients = [link.client for link in self._links]
        present = [client for client in clients if client is not None]
        if len(present) == len(clients):
            sessions = tuple(client.session.id for client in present)
            if sessions != self._sessions:
                self._sessions = sessions
                self._begin(present)
        return self._state

    def own_mark(self) -> bytes:
        """Names the engine's own KV inside the family's space: equal for engines of one identity.
        Every space must be connected."""
        digest = blake2b(digest_size=16)
        for link in self._links:
            assert link.client is not None
            session = link.client.session
            digest.update(
                session.identity.fingerprint(
                    tenant_id=session.tenant_id, chunk_tokens=session.chunk_tokens
                )
            )
        return b"member\0" + digest.digest()

    def note(
        self, verdicts: Iterable[tuple[bytes, Verdict]], places: Mapping[bytes, Place]
    ) -> list[tuple[bytes, Verdict]]:
        """Takes the verdicts of blocks that belong to the proof. Returns the others."""
        self._places |= places
        others = []
        for block_id, verdict in verdicts:
            is_asked = self._proof.expects(block_id)
            if not is_asked and block_id not in self._stale:
                others.append((block_id, verdict))
                continue
            self._telemetry.count("compared_blocks", 1, verdict)
            if not is_asked or self._state is not MemberState.ATTESTING:
                continue
            self._proof.note(block_id, verdict)
            if verdict is Verdict.OTHER or self._proof.near >= MOST_NEAR:
                self._refuse(self._places.get(block_id))
            elif self._proof.is_complete:
                self._round += 1
                self._state = None  # until the platform has answered
                self._report(MemberState.ATTACHED)
        return others

    def detach(self) -> None:
        """KV of the family differed after the proof (see `neve.engine.canary`)."""
        if self._state is MemberState.ATTACHED:
            self._refuse(None)

    def note_weights(self, epoch: bytes) -> None:
        """Workers compared their weights after a reset; b"": they are those of the start."""
        if epoch != self._weights:
            self._weights, self._sessions = epoch, ()

    def close(self) -> None:
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, clients: Sequence[Client]) -> None:
        """Other sessions, or other weights: what does the platform know of this engine?"""
        self._stale.update(self._proof.asked())
        self._proof = Proof(parts=self._parts, groups=self._groups)
        self._places.clear()
        self._round += 1
        found = {
            client.session.membership.state if client.session.membership is not None else None
            for client in clients
        }
        if self._weights and found != {MemberState.PRODUCER}:
            # The handshake's answer is about the weights of the start.
            self._become(None)
            self._report(MemberState.ATTESTING)
            return
        self._become(_least(found))

    def _become(self, state: MemberState | None) -> None:
        if state is not self._state and state is not None:
            log_events.FAMILY_STATE.log(state=state.value)
        self._state = state
        self._telemetry.gauge("attached", int(state is MemberState.ATTACHED))

    def _refuse(self, place: Place | None) -> None:
        self._round += 1
        log_events.FAMILY_DIFFERS.log(
            layer=place.layer if place is not None else "",
            first_token=place.first_token if place is not None else None,
            end_token=place.end_token if place is not None else None,
        )
        self._become(MemberState.REFUSED)
        self._report(MemberState.REFUSED, place)

    def _report(self, state: MemberState, place: Place | None = None) -> None:
        found = Attested(
            state, self._weights.hex(), blocks=self._proof.blocks, near=self._proof.near
        )
        if place is not None:
            found = replace(
                found, layer=place.layer, first_token=place.first_token, end_token=place.end_token
            )
        self._thread.submit(self._send, self._round, found)

    def _send(self, number: int, found: Attested) -> None:
        """On the reporting thread: until the platform has answered for every space."""
        answers: set[MemberState | None] = set()
        for link in self._links:
            while not self._closing.is_set():
                try:
                    client = link.client
                    if client is None:
                        raise Unavailable("not connected")
                    answers.add(client.report_attestation(found))
                    break
                except Unavailable:
                    self._closing.wait(RETRY_S)
                except NeveError as error:
                    log_events.FAMILY_UNREPORTED.log(detail=error)
                    return
                except Exception:
                    log_events.FAMILY_BROKEN.log(exc_info=True)
                    return
        if not self._closing.is_set():
            state = _least(answers)
            if state is not None:
                self._answers.append((number, state))


def _least(states: set[MemberState | None]) -> MemberState | None:
    """What several spaces allow together."""
    for state in (None, MemberState.REFUSED, MemberState.ATTESTING, MemberState.ATTACHED):
        if state in states:
            return state
    return MemberState.PRODUCER if states else None
