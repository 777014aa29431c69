"""Schemathesis against a live platform: `make fuzz-api` (EXAMPLES=20 SEED=1).

Runs all its checks as an operator, a team, a read-only key, a viewer in a browser and a node,
against docs/openapi.json, whose links lead from an answer to the operations on its object. Prints
the output of each run, the cases and the operations; exit code 1 after a finding.
`tests/cacheapi/test_fuzz.py` runs a short form in CI.

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

# who asks → their paths
TEAMS = "^/api/v1/"
PATHS = {
    "operator": TEAMS,
    "team": TEAMS,
    "reader": TEAMS,
    "viewer": TEAMS,
    "node": "^/cache/v1/",
}
SEED_ROWS = """
import json
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from dataclasses import asdict, replace
from catalog.kinds import KINDS
from storage.s3 import default
from support.rows import make_everything, make_person, make_tenant
from tenants.models import ApiKey
from tenants.services import issue_key
tenant = make_tenant("fuzzed")
rows = make_everything(tenant, 2)
told = {"session": str(rows["node"].pk), "space": rows["space"].pk}
told["context"] = str(rows["context"].pk)
told["of_all_tenants"] = [kind.name for kind in KINDS.values() if not kind.of_tenant]
for role in ("operator", "team", "reader", "node"):
    owner = None if role == "operator" else tenant
    kind = "team" if role == "reader" else role
    scopes = ["read"] if role == "reader" else None
    key, told[role] = issue_key(tenant=owner, role=kind, name="fuzz", scopes=scopes)
    told[role + "_id"] = key.pk
person = make_person("viewer", fuzzed="viewer")
login = SessionStore()
login[SESSION_KEY] = str(person.pk)
login[BACKEND_SESSION_KEY] = "tenants.signing_in.SignInBackend"
login[HASH_SESSION_KEY] = person.get_session_auth_hash()
login.create()
bucket = replace(default(), name="fuzzed")
bucket.ensure()
told["store"] = asdict(bucket) | {"bucket": bucket.name, "credentials_env": ""}
del told["store"]["name"]
told["viewer"] = login.session_key
told["viewer_id"] = person.memberships.get().pk
print("TOLD" + json.dumps(told))
"""


@dataclass(frozen=True)
class Report:
    role: str
    cases: int
    operations: int
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
        *("--url", url, *_credentials(keys[role], role), "--checks", "all"),
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
        # It takes the header of a key away, and a viewer's cookie stays.
        *(("--exclude-checks", "ignored_auth") if role == "viewer" else ()),
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
    tested = re.search(r"Operations:.*?(\d+) selected", done.stdout)
    operations = int(tested[1]) if tested else 0
    return Report(role, cases, operations, done.returncode == 0, output)


def _credentials(secret: str, role: str) -> list[str]:
    if role != "viewer":
        return ["--header", f"Authorization: Bearer {secret}"]
    token = "f" * 32
    cookies = f"sessionid={secret}; csrftoken={token}"
    return ["--header", f"Cookie: {cookies}", "--header", f"X-CSRFToken: {token}"]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--examples", type=int, default=20, help="an operation and phase")
    options.add_argument("--cases", type=int, default=4000, help="least cases, over all keys")
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
                    print(f"=== {role}: {report.cases} cases of {report.operations} operations")
                    print(report.output, flush=True)
                errors = [x for x in platform.log.read_text().splitlines() if "[error]" in x]
                print("\n".join(errors[:40]))
    cases = sum(report.cases for report in reports)
    is_clean = all(report.is_clean for report in reports)
    for report in reports:
        print(f"{report.role}: {report.cases} cases, {report.operations} operations")
    print(f"{cases} cases, {'nothing found' if is_clean else 'see above'}")
    return 0 if is_clean and cases >= chosen.cases else 1


def unlimited() -> dict[str, Any]:
    """Settings of the platform: no rates, and engines on this machine."""
    rates = dict.fromkeys(("RATE_CALLER", "RATE_ADDRESS", "RATE_NODE"), "")
    return {**rates, "OUTBOUND_ALLOW": "127.0.0.0/8"}


if __name__ == "__main__":
    sys.exit(main())
