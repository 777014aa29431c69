"""Schemathesis against a live platform: `make fuzz-api` (EXAMPLES=20 SEED=1).

Runs all its checks with an operator's, a team's and a node's key, against docs/openapi.json.
Prints the output of each run; exit code 1 after a finding. `tests/cacheapi/test_fuzz.py` runs a
short form in CI.

Must not be here: exceptions for findings. Fix the platform or its schema instead.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.servers import ROOT, ControlPlane, S3Server

# role of a key → its paths
PATHS = {"operator": "^/api/v1/", "team": "^/api/v1/", "node": "^/cache/v1/"}
SEED_ROWS = """
import json
from catalog.kinds import KINDS
from support.rows import make_everything, make_tenant
from tenants.models import ApiKey
from tenants.services import issue_key
tenant = make_tenant("fuzzed")
rows = make_everything(tenant, 2)
told = {"session": str(rows["node"].pk)}
told["of_all_tenants"] = [kind.name for kind in KINDS.values() if not kind.of_tenant]
for role in ("operator", "team", "node"):
    owner = None if role == "operator" else tenant
    key, told[role] = issue_key(tenant=owner, role=role, name="fuzz")
    told[role + "_id"] = key.pk
print("TOLD" + json.dumps(told))
"""


@dataclass(frozen=True)
class Report:
    role: str
    cases: int
    is_clean: bool
    output: str


def keys_of(platform: ControlPlane) -> dict[str, Any]:
    """Make a tenant with rows of each kind. Returns role → key, and role + "_id" → its number."""
    code = f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n{SEED_ROWS}"
    output = platform.manage("shell", "--no-imports", "-v0", "-c", code)
    told: dict[str, Any] = json.loads(re.findall(r"^TOLD(.*)$", output, re.M)[-1])
    return told


def fuzz(
    folder: Path,
    url: str,
    keys: dict[str, Any],
    role: str,
    *,
    examples: int,
    seed: int,
    phases: str = "coverage,fuzzing,stateful",
) -> Report:
    """Run Schemathesis with one key; at most `examples` cases per operation and phase."""
    command = [
        *(
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            str(ROOT / "docs/openapi.json"),
        ),
        *("--url", url, "--header", f"Authorization: Bearer {keys[role]}", "--checks", "all"),
        *("--include-path-regex", PATHS[role], "--max-examples", str(examples)),
        *(
            "--phases",
            phases,
            "--seed",
            str(seed),
            "--workers",
            "2",
            "--continue-on-failure",
            "--no-color",
        ),
        *("--suppress-health-check", "all", "--generation-database", "none"),
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "support.fuzz_hooks",
        "PYTHONPATH": str(ROOT / "tests"),
        "NEVE_FUZZ": json.dumps(keys),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    found = re.search(r"^\s*(\d[\d,]*) generated", done.stdout, re.M)
    cases = int(found[1].replace(",", "")) if found else 0
    # If Schemathesis itself fails, it prints whole source files.
    output = "\n".join(line[:2000] for line in done.stdout.splitlines())
    return Report(role, cases, done.returncode == 0, output)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--examples", type=int, default=20, help="an operation and phase")
    options.add_argument("--cases", type=int, default=2000, help="least cases, over all keys")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", choices=PATHS)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="neve-fuzz-") as folder:
        with S3Server(Path(folder, "s3")) as s3:
            platform = ControlPlane(Path(folder, "platform"), s3)
            platform.settings |= unlimited()
            with platform:
                keys = keys_of(platform)
                reports = []
                for role in [chosen.only] if chosen.only else PATHS:
                    report = fuzz(
                        Path(folder),
                        platform.url,
                        keys,
                        role,
                        examples=chosen.examples,
                        seed=chosen.seed,
                    )
                    reports.append(report)
                    print(f"=== {role}: {report.cases} cases\n{report.output}", flush=True)
                errors = [x for x in platform.log.read_text().splitlines() if "[error]" in x]
                print("\n".join(errors[:40]))
    cases = sum(report.cases for report in reports)
    is_clean = all(report.is_clean for report in reports)
    print(f"{cases} cases, {'nothing found' if is_clean else 'see above'}")
    return 0 if is_clean and cases >= chosen.cases else 1


def unlimited() -> dict[str, Any]:
    return dict.fromkeys(("RATE_CALLER", "RATE_ADDRESS", "RATE_NODE"), "")


if __name__ == "__main__":
    sys.exit(main())
