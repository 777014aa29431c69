"""What one trial does, as a pure function of its seed: a failing seed gives the same plan again.

The plan fixes the workload's random numbers, the servers' modes, and which fault begins when. It
does not fix how the operating system interleaves the processes: a rare failure may need its seed
several times.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

# Kind of fault -> how often it is drawn, relative to the others. A restart of S3 takes 2 s.
FAULTS = {
    "kill_worker": 6,
    "kill_node": 4,
    "kill_valkey": 6,
    "kill_s3": 1.5,
    "kill_far": 1.5,
    "stop_worker": 3,
    "stop_node": 3,
    "stop_valkey": 3,
    "stop_s3": 3,
    "stop_far": 2,
    "s3_500": 3,
    "s3_slow_down": 3,
    "s3_cut_answer": 3,
    "s3_cut_upload": 3,
    "s3_lost_answer": 3,
    "s3_delay": 2,
    "s3_flip_answer": 3,
    "s3_stale_list": 2,
    "clock_valkey": 4,
    "clock_workers": 3,
    "disk_full_s3": 3,
    "disk_full_far": 1,
    "disk_full_valkey": 2,
    "flip_hot": 4,
    "flip_cold": 4,
    "flip_footer": 2,
    "cut_segment": 3,
    "foreign_segment": 3,
    "delete_segment": 2,
    "stray_object": 3,
    "stray_key": 3,
    "lose_key": 3,
    "miscount": 2,
    "disk_full_local": 3,
    "flip_local": 3,
    "cut_local": 3,
    "foreign_local": 3,
}


class Moves(StrEnum):
    """Rules between the default store and the far one: out and back without end, out only, kept
    copies there, none."""

    FRO = "fro"
    OUT = "out"
    COPIES = "copies"
    NONE = "none"


class Persistence(StrEnum):
    """What a killed Valkey comes back with: nothing, every write, or the last snapshot."""

    NONE = "none"
    LOG = "log"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Fault:
    """Begins `at_s` after the work and lasts `for_s`; `seed` for its own random choices."""

    at_s: float
    kind: str
    for_s: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """`hot_blocks`, `cold_blocks`: quotas, in blocks of 16 KiB; the mean block has 13.

    `local_blocks`: what the nodes' local tier may hold, likewise. `has_lossy`: every second node
    stores in the space of a lossy codec of the same model.

    `flush_after_s` None: never. `ttl_s` None: no end. `cold_full`: of the retention policy.
    """

    seed: int
    work_s: float
    tenants: int
    nodes: int
    workers: int
    persistence: Persistence
    hot_blocks: int
    cold_blocks: int
    flush_after_s: int | None
    ttl_s: int | None
    cold_full: str
    local_blocks: int
    moves: Moves
    cold_codec: str
    has_lossy: bool
    faults: tuple[Fault, ...]


def plan_trial(seed: int, *, kinds: tuple[str, ...] = tuple(FAULTS)) -> Plan:
    """Two to five faults of `kinds` in about a second of work."""
    rng = random.Random(seed)
    persistence = rng.choices(tuple(Persistence), (3, 1, 1))[0]
    work_s = rng.uniform(0.7, 1.3)
    drawn = rng.choices(kinds, [FAULTS[kind] for kind in kinds], k=rng.randint(2, 5))
    faults = sorted(
        (
            Fault(
                at_s=rng.uniform(0.15, 0.9) * work_s,
                kind=kind,
                for_s=rng.uniform(0.05, 0.5),
                seed=rng.getrandbits(32),
            )
            for kind in drawn
        ),
        key=lambda fault: fault.at_s,
    )
    if "kill_valkey" in drawn:
        work_s += 1  # for nodes to come back, and for a rebuild before the next flush
    if "disk_full_valkey" in drawn:
        persistence = Persistence.LOG  # the others write nothing
    tiers = random.Random(f"tiers {seed}")
    return Plan(
        seed=seed,
        work_s=work_s,
        tenants=rng.choice((1, 1, 2)),
        nodes=2,
        workers=rng.choice((1, 2, 2)),
        persistence=persistence,
        hot_blocks=rng.choice((40, 150, 1000)),
        cold_blocks=rng.choice((30, 10_000, 10_000, 10_000)),
        flush_after_s=rng.choices((0, 1, None), (10, 2, 1))[0],
        ttl_s=rng.choices((None, 400), (5, 1))[0],
        cold_full=rng.choices(("evict", "refuse"), (3, 1))[0],
        local_blocks=rng.choice((20, 1000)),
        moves=tiers.choices(tuple(Moves), (4, 2, 2, 1))[0],
        cold_codec=tiers.choices(("always", "none"), (5, 1))[0],
        has_lossy=tiers.random() < 0.3,
        faults=tuple(faults),
    )
