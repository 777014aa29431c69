"""Runs pytest, and what failed once more, alone: `python -m support.second_try [its arguments]`.

Some tests wait for real servers and browsers; beside others, on a busy machine, such a wait can be
too short. A failure that the second try does not repeat is named at the end, to be mended.
No second try for more than MOST failures, nor where a wrong answer may be rare: EXACT.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

from support.servers import ROOT

MOST = 8
EXACT = (
    *("tests/attacks/", "tests/torture/", "tests/hot/", "tests/tiering/test_torture.py"),
    *("tests/cacheapi/test_permissions.py", "tests/vllm/test_conformance.py"),
    *("tests/vllm/test_exactness.py", "tests/vllm/test_pairs.py"),
    "tests/vllm/test_wrong_tokens.py",
)
FAILED = ROOT / ".pytest_cache/v/cache/lastfailed"


def main(arguments: Sequence[str]) -> int:
    FAILED.unlink(missing_ok=True)
    code = _pytest(*arguments)
    failed = sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []
    if code != 1 or not 0 < len(failed) <= MOST or any(name.startswith(EXACT) for name in failed):
        return code
    print(f"Once more, alone: {len(failed)} that failed beside others.", flush=True)
    code = _pytest(*arguments, "--numprocesses=0", "--last-failed")  # in the order of their files
    if code == 0:
        print("Failed beside others, passed alone. Find out why:", *failed, sep="\n  ")
    return code


def _pytest(*arguments: str) -> int:
    return subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
