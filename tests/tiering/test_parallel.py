"""Workers in several processes do not step on each other, and may be killed at any point."""

import json
import subprocess
import sys

import pytest

from support.servers import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture
def crowd(control_plane):
    """Runs a scenario of support/crowd.py; returns its facts."""

    def run(scenario):
        environment = control_plane.environment()
        environment["PYTHONPATH"] += f":{ROOT / 'tests'}"
        done = subprocess.run(
            [sys.executable, "-m", "support.crowd", scenario],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def nothing_is_lost(facts):
    exact = ("lost", "dirty_blocks", "drift_bytes", "live_drift_bytes")
    return facts["stored"] > 0 and not any(facts[name] for name in exact)


def test_flushes_at_once_put_every_block_into_one_segment(crowd):
    facts = crowd("flush")
    assert nothing_is_lost(facts), facts
    assert facts["copies"] == facts["job_blocks"]["flush"] == facts["stored"]
    assert facts["job_states"] == ["done"]


def test_merges_at_once_copy_no_segment_twice(crowd):
    facts = crowd("compact")
    assert nothing_is_lost(facts), facts
    assert facts["job_states"] == ["done"]
    written = facts["flushed_segments"] + facts["new_segments"]
    assert facts["old_segments"] == written - facts["segments_in_use"] > 0  # each merged once
    assert facts["segments"]["uploading"] == 0


def test_workers_that_are_killed_lose_nothing(crowd):
    facts = crowd("killed")
    assert nothing_is_lost(facts), facts
