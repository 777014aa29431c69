"""When an engine's KV counts as its family's, and what it shares before and after."""

import time
from types import SimpleNamespace

import pytest

from neve.engine.attest import BLOCKS, EACH_PROMPT, MOST_NEAR, Attestation, Proof
from neve.engine.canary import Verdict
from neve.engine.step import Place
from neve.engine.telemetry import Telemetry
from neve.errors import Refused
from neve.formats.space import SpaceIdentity
from neve.node.membership import Attested, Membership, MemberState

IDENTITY = SpaceIdentity(
    model="twin", revision="r", dtype="d", kv_dtype="d", layout="l", layout_version=1,
    engine_block_tokens=32, bytes_per_token=16,
)  # fmt: skip
ATTESTING, ATTACHED, REFUSED = MemberState.ATTESTING, MemberState.ATTACHED, MemberState.REFUSED


def compared(proof, prompt, chunks, verdict=Verdict.SAME, group=0):
    for chunk in chunks:
        block_id = bytes([prompt, chunk, group])
        proof.expect(block_id, group=group, chunk=chunk, prompt=bytes([prompt]))
        proof.note(block_id, verdict)


def test_a_proof_needs_blocks_prompts_and_lengths():
    proof = Proof(parts=1, groups=1)
    compared(proof, 1, range(BLOCKS))
    assert not proof.is_complete  # one prompt
    compared(proof, 2, range(1))
    assert proof.is_complete
    short = Proof(parts=1, groups=1)
    for prompt in range(2 * BLOCKS):
        compared(short, prompt, range(2))
    assert not short.is_complete  # two lengths


def test_each_group_has_to_be_equal_at_several_lengths():
    proof = Proof(parts=1, groups=2)
    for prompt in (1, 2):
        compared(proof, prompt, range(BLOCKS))
        compared(proof, prompt, range(2), group=1)
    assert not proof.is_complete
    compared(proof, 1, [2], group=1)
    assert proof.is_complete


def test_every_rank_has_to_find_a_block_equal():
    proof = Proof(parts=2, groups=1)
    for prompt in (1, 2):
        compared(proof, prompt, range(BLOCKS))
    assert proof.blocks == 0
    for prompt in (1, 2):
        compared(proof, prompt, range(BLOCKS))
    assert proof.is_complete


def test_what_is_equal_but_for_rounding_makes_the_proof_longer():
    proof = Proof(parts=1, groups=1)
    compared(proof, 9, [0], Verdict.NEAR)
    compared(proof, 9, [0])  # a second rank's part of it does not help
    for prompt in (1, 2):
        compared(proof, prompt, range(BLOCKS // 2))
    assert (proof.blocks, proof.near, proof.is_complete) == (BLOCKS, 1, False)
    compared(proof, 3, range(BLOCKS))
    assert proof.is_complete


def test_chunks_to_compare_are_spread_and_new():
    proof = Proof(parts=1, groups=1)
    found = {chunk: [bytes([1, chunk, 0])] for chunk in range(50)}
    chunks = proof.chunks(found)
    assert (chunks[0], chunks[-1], len(chunks)) == (0, 49, EACH_PROMPT)
    compared(proof, 1, chunks)
    assert set(chunks).isdisjoint(proof.chunks(found))
    compared(proof, 1, range(50))
    assert proof.chunks(found) == []


class Platform:
    """A link, its client, and what the platform answers."""

    def __init__(self, state, answers=()):
        self.reports: list[Attested] = []
        self.answers = list(answers)
        self.open(state)

    def open(self, state):
        self.session = SimpleNamespace(
            id=f"{time.monotonic_ns()}",
            membership=Membership("one", state, IDENTITY),
            identity=IDENTITY,
            tenant_id=7,
            chunk_tokens=64,
        )

    @property
    def client(self):
        return self

    def report_attestation(self, found):
        self.reports.append(found)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def made():
    every = []

    def make(*args, **kwargs):
        platform = Platform(*args, **kwargs)
        every.append(Attestation([platform], Telemetry(), parts=1, groups=1))
        return platform, every[-1]

    yield make
    for attestation in every:
        attestation.close()


def until(attestation, state):
    end = time.monotonic() + 10
    while attestation.state() is not state:
        assert time.monotonic() < end


def find(attestation, prompt, chunks, verdict=Verdict.SAME, place=None):
    """Verdicts of workers. Returns those that the attestation leaves to the canary."""
    ids = [bytes([prompt, chunk, 0]) for chunk in chunks]
    for block_id, chunk in zip(ids, chunks, strict=True):
        attestation.proof.expect(block_id, group=0, chunk=chunk, prompt=bytes([prompt]))
    places = {} if place is None else dict.fromkeys(ids, place)
    return attestation.note([(block_id, verdict) for block_id in ids], places)


def test_it_is_attached_once_the_platform_says_so(made):
    platform, attestation = made(ATTESTING, answers=[ATTACHED])
    assert attestation.state() is ATTESTING
    find(attestation, 1, range(BLOCKS))
    find(attestation, 2, [0])
    until(attestation, ATTACHED)
    assert platform.reports == [Attested(ATTACHED, blocks=BLOCKS + 1)]


def test_a_refusal_of_the_platform_wins_over_the_proof(made):
    _, attestation = made(ATTESTING, answers=[REFUSED])
    attestation.state()
    find(attestation, 1, range(BLOCKS))
    find(attestation, 2, [0])
    until(attestation, REFUSED)


def test_a_report_that_fails_shares_nothing(made):
    platform, attestation = made(ATTESTING, answers=[Refused("no")])
    attestation.state()
    find(attestation, 1, range(BLOCKS))
    find(attestation, 2, [0])
    end = time.monotonic() + 10
    while not platform.reports:
        assert time.monotonic() < end
    assert attestation.state() is None


def test_a_difference_refuses_at_once_and_says_where(made):
    platform, attestation = made(ATTESTING, answers=[REFUSED])
    attestation.state()
    find(attestation, 1, [3], Verdict.OTHER, Place("layer.2", 192, 224))
    assert attestation.state() is REFUSED
    find(attestation, 2, range(BLOCKS))
    find(attestation, 3, range(BLOCKS))
    end = time.monotonic() + 10
    while not platform.reports:
        assert time.monotonic() < end
    assert platform.reports == [Attested(REFUSED, layer="layer.2", first_token=192, end_token=224)]
    assert attestation.state() is REFUSED


def test_rounding_without_end_refuses(made):
    _, attestation = made(ATTESTING, answers=[REFUSED])
    attestation.state()
    find(attestation, 1, range(MOST_NEAR - 1), Verdict.NEAR)
    assert attestation.state() is ATTESTING
    find(attestation, 2, [0], Verdict.NEAR)
    assert attestation.state() is REFUSED


def test_verdicts_of_other_blocks_are_the_canarys(made):
    _, attestation = made(ATTESTING)
    attestation.state()
    others = [(b"other", Verdict.OTHER)]
    assert attestation.note(others, {}) == others
    assert attestation.state() is ATTESTING


def test_a_difference_after_the_proof_detaches(made):
    _, attestation = made(ATTACHED, answers=[REFUSED])
    assert attestation.state() is ATTACHED
    attestation.detach()
    assert attestation.state() is REFUSED


def test_changed_weights_have_to_prove_themselves(made):
    platform, attestation = made(ATTACHED, answers=[ATTESTING])
    assert attestation.state() is ATTACHED
    attestation.note_weights(b"new")
    assert attestation.state() is not ATTACHED
    until(attestation, ATTESTING)
    assert platform.reports == [Attested(ATTESTING, weights=b"new".hex())]
    attestation.note_weights(b"")  # those of the start again
    assert attestation.state() is ATTACHED


def test_another_session_brings_another_word(made):
    platform, attestation = made(ATTACHED)
    assert attestation.state() is ATTACHED
    platform.open(ATTESTING)  # an operator wants the proof again
    assert attestation.state() is ATTESTING


def test_a_verdict_on_blocks_of_an_earlier_proof_says_nothing(made):
    platform, attestation = made(ATTESTING)
    attestation.state()
    attestation.proof.expect(b"early", group=0, chunk=0, prompt=b"p")
    platform.open(ATTESTING)
    attestation.state()
    assert attestation.note([(b"early", Verdict.OTHER)], {}) == []
    assert attestation.state() is ATTESTING
