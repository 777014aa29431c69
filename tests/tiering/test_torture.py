"""The torture test in short, and its own pure parts. The long form: `make torture`."""

import os
import subprocess
import sys
from itertools import count

import pytest

from support.servers import PYTHON_ENV, ROOT
from torture.model import Entry, Model, payload, payload_bytes, sums
from torture.plan import FAULTS, Persistence, Plan, plan_trial

A, B, C = (bytes([n]) * 16 for n in range(3))
SHORT_TRIALS = 5


def starts_s3_with_a_wrong_clock(plan: Plan) -> bool:
    starts_s = [f.at_s + f.for_s for f in plan.faults if f.kind == "kill_s3"]
    wrong_s = [(f.at_s, f.at_s + f.for_s) for f in plan.faults if f.kind == "clock_workers"]
    return any(begin < start < end for start in starts_s for begin, end in wrong_s)


SHORT_SEED = next(n for n in count(1) if starts_s3_with_a_wrong_clock(plan_trial(n)))


@pytest.mark.integration
def test_a_short_torture_loses_nothing():
    command = [sys.executable, "-m", "torture", "--trials", str(SHORT_TRIALS)]
    command += ["--seed", str(SHORT_SEED)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("NEVE_")} | PYTHON_ENV
    env["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
    done = subprocess.run(
        command, cwd=ROOT, env=env, timeout=300, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert last == f"torture trials={SHORT_TRIALS} wrong=0 lost=0 drift_bytes=0", done.stdout
    assert done.returncode == 0, done.stdout


def test_a_seed_always_gives_the_same_plan():
    assert plan_trial(7) == plan_trial(7)
    assert plan_trial(7) != plan_trial(8)


def test_every_fault_and_every_kind_of_memory_is_drawn_often():
    plans = [plan_trial(seed) for seed in range(300)]
    drawn = [fault.kind for plan in plans for fault in plan.faults]
    assert min(drawn.count(kind) for kind in FAULTS) >= 5
    assert {plan.persistence for plan in plans} == set(Persistence)


def test_a_full_disk_is_only_drawn_for_a_valkey_that_writes():
    plans = [plan_trial(seed, kinds=("disk_full_valkey",)) for seed in range(20)]
    assert {plan.persistence for plan in plans} == {Persistence.LOG}


def test_a_payload_follows_from_its_id():
    assert payload(A) == payload(A) != payload(B)
    assert len(payload(A)) == payload_bytes(A)


def test_what_was_reported_durable_must_be_served():
    model = Model(stored={A, B, C}, durable={A}, memory_lost=True)
    assert model.lost({A: "never_stored", B: None, C: "evicted"}) == [A]


def test_what_was_stored_must_be_served_unless_memory_was_lost_or_s3_is_full():
    missed = dict.fromkeys((A, B, C), "evicted")
    assert Model(stored={A, B}).lost(missed) == [A, B]
    assert Model(stored={A, B}, memory_lost=True).lost(missed) == []
    assert Model(stored={A, B}, hot_only=True).lost(missed) == []


def test_what_has_an_end_may_expire_and_nothing_else():
    model = Model(stored={A}, durable={A}, may_expire=True)
    assert model.lost({A: "expired"}) == []
    assert model.lost({A: "never_stored"}) == [A]
    model.memory_lost = True
    assert model.lost({A: "never_stored"}) == []
    assert model.lost({A: "corrupt"}) == [A]


def test_only_what_was_damaged_may_be_missed_and_must_say_so():
    model = Model(stored={A, B}, durable={A, B}, damaged_cold={A})
    assert model.lost({A: "corrupt", B: None}) == []
    assert model.lost({A: "corrupt", B: "corrupt"}) == [B]
    assert model.unexplained({A: "corrupt", B: None}) == []
    assert model.unexplained({A: "evicted", B: None}) == [A]
    assert model.unexplained({A: "quota", B: None}) == [A]
    model.refused.add(A)
    assert model.unexplained({A: "quota", B: None}) == []


def test_what_expired_may_be_refused_when_it_is_stored_again():
    model = Model(stored={A, B}, refused={A}, may_expire=True)
    assert model.lost({A: "quota", B: "quota"}) == [B]
    model.may_expire = False
    assert model.lost({A: "quota", B: None}) == [A]


def test_a_full_cold_tier_may_let_durable_blocks_go_and_says_so():
    model = Model(stored={A, B}, durable={A, B}, hot_only=True, cold_evicts=True)
    assert model.lost({A: "evicted_cold", B: None}) == []
    assert model.lost({A: "never_stored", B: "evicted"}) == [A, B]


def test_a_damaged_footer_excuses_only_after_a_rebuild():
    model = Model(stored={A}, durable={A}, footers_damaged={A})
    assert model.lost({A: "never_stored"}) == [A]
    model.memory_lost = True
    assert model.lost({A: "never_stored"}) == []


def test_counters_are_sums_over_the_index():
    entries = [
        Entry(True, True, False, True, 1, 100, 3),
        Entry(True, False, True, False, 1, 7, 0),
    ]
    assert sums(entries) == {
        "hot_bytes": 107, "hot_blocks": 2, "cold_bytes": 100, "cold_blocks": 1,
        "dirty_bytes": 7, "dirty_blocks": 1, "pinned_bytes": 100, "pinned_blocks": 1,
        "unstored_bytes": 0, "unstored_blocks": 0,
    }  # fmt: skip
