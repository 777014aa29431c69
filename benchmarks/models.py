"""Several models in turns over the same contexts: as one family that shares its KV, and apart.

    .venv/bin/python benchmarks/models.py [--models 8] [--quota 64MiB,1GiB] [replay's options]

Runs `neve replay --models` through a new platform for each hot quota. The tenant keeps its blocks
in Valkey only, so a full quota evicts. Servers and client are real; the engines' prefill is a wait,
and the time to the first token is what a load took plus that wait.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from neve.cli.replay_command import Size  # noqa: E402
from support.servers import ControlPlane, S3Server  # noqa: E402

NEVE = Path(sys.executable).with_name("neve")
PREPARE = """
from retention import provisioning
from retention.models import RetentionPolicy
from tenants.models import Quota, Tenant
from tenants.scope import tenant_scope
tenant = Tenant.objects.get()
with tenant_scope(tenant.pk):
    Quota.objects.update(hot_bytes={quota})
    RetentionPolicy.objects.update(flush_mode="never")
provisioning.provision_tenant(tenant)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--quota", default="64MiB,1GiB", help="of the hot tier, one or several")
    options, rest = parser.parse_known_args()
    rest = rest or [
        *("--generate", "agents", "--requests", "400", "--concurrency", "8"),
        *("--kv-bytes-per-token", "256", "--prefill-tokens-per-s", "20000"),
    ]
    print(" ".join(["neve replay --models", str(options.models), *rest]))
    for size in options.quota.split(","):
        quota = Size().convert(size, None, None)
        print(f"hot quota {size}:", flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="neve-models-") as name,
            S3Server(Path(name, "s3")) as s3,
            ControlPlane(Path(name, "web"), s3, maxmemory="2gb") as web,
        ):
            web.manage("shell", "--no-imports", "-v0", "-c", PREPARE.format(quota=quota))
            command = [
                *(str(NEVE), "replay", "--endpoint", web.url, "--api-key", web.node_key),
                *("--models", str(options.models), "--capacity", str(quota), "--quiet", *rest),
            ]
            if failed := subprocess.run(command, check=False).returncode:
                return failed
    return 0


if __name__ == "__main__":
    sys.exit(main())
