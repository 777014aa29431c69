"""The trace benchmark's placement is that of the workers; its figures count what they say."""

from benchmarks.compaction import Case, measure, schedule, simulated, stages
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.segments import chain_of, play, stored_blocks
from tiering import segments
from tiering.compaction.plan import Policy

MIB = 1 << 20
BLOCK_BYTES = 2 * MIB
SIZE = BLOCK_BYTES + 64


def request(at_s, *numbers):
    return BlockRequest(numbers, at_s)


def growing(chains=4, turns=8, step=8):
    """Chains behind one shared block that grow in turn, ten seconds apart."""
    return [
        request(10 * turn, 0, *range(1000 * chain, 1000 * chain + step * (turn + 1)))
        for turn in range(turns)
        for chain in range(1, chains + 1)
    ]


def test_blocks_are_stored_once_behind_their_parents_as_prefill_computes_them():
    stored = stored_blocks(
        [request(1, 5, 6), request(2, 5, 7)], payload_bytes=BLOCK_BYTES, block_s=0.5
    )
    ids = [chain_of(request(0, number))[0] for number in (5, 6, 7)]
    assert [(at_s, block.id) for at_s, block in stored] == list(
        zip((1.5, 2, 2.5), ids, strict=True)
    )
    assert [block.parent for _, block in stored] == [bytes(16), ids[0], ids[0]]


def test_merging_needs_fewer_gets_and_keeps_every_block_in_a_place_of_its_own():
    requests = growing()
    stored = stored_blocks(requests, payload_bytes=BLOCK_BYTES, block_s=1e-6)
    policy = Policy(range_bytes=64 * MIB)
    scattered, merged = simulated(policy), simulated(policy)
    play(scattered, stored, schedule(), compacts=False)
    play(merged, stored, schedule(), compacts=True)
    last = requests[-1:]
    before = measure("", scattered, last, BLOCK_BYTES)
    after = measure("", merged, last, BLOCK_BYTES)
    assert before.segments == 8  # one a turn
    assert after.gets < before.gets
    assert after.live_bytes == before.live_bytes == len(stored) * SIZE
    places = merged.places([block.id for _, block in stored])
    assert len(set(places)) == len(places)
    assert all(offset % SIZE == 64 for _, offset in places)


def test_expired_blocks_are_dead_until_their_segments_are_merged():
    case = Case(BLOCK_BYTES, expired=0.5, tokens_per_s=1e9)
    flushed, flushed_expired, _, merged_expired = stages(simulated, growing(), case)
    assert flushed.dead_bytes == flushed.segments * 64  # their headers
    assert flushed_expired.live_bytes == merged_expired.live_bytes < flushed.live_bytes
    assert flushed_expired.dead_bytes > merged_expired.dead_bytes
    assert merged_expired.moved_bytes > 0


def test_the_limits_are_those_of_the_workers():
    world = simulated(Policy())
    stored = stored_blocks(growing(), payload_bytes=BLOCK_BYTES, block_s=1e-6)
    play(world, stored, schedule(), compacts=True)
    assert world.held()[0] >= world.held()[1] // segments.MOST_BYTES
