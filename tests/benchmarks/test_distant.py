"""The benchmark of distant cold reads runs to its end; what it measures is no matter here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_reads_the_right_bytes_and_prints_its_ratios(tmp_path):
    few = ["--mib", "8", "--streams", "2", "--stream-mbs", "0", "--rounds", "1", "--loads", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/distant.py", *few, "--out", tmp_path],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    number = r"=\d+\.\d\d"
    line = f"distant cold_vs_raw{number} plain_p99_vs_median{number} hedged_p99_vs_median{number}"
    assert re.fullmatch(line, done.stdout.splitlines()[-1])
