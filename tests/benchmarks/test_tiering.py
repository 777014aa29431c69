"""`make bench-tiering` ends with the line that others read; how fast it was is nobody's test."""

import os
import re
import subprocess
import sys

import pytest

from support.servers import ROOT

LINE = (
    r"tiering flush_vs_raw=\d+\.\d\d compact_vs_raw=\d+\.\d\d cold_vs_raw=\d+\.\d\d "
    r"worker_peak_mib=\d+"
)


@pytest.mark.integration
def test_a_small_run_ends_with_the_headline(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/tiering_speed.py", "--mib", "64", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "QUICK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(LINE, done.stdout.splitlines()[-1])
    assert (tmp_path / "tiering.json").exists()
