"""The control plane's cost of a pin while the space has many other pinned contexts.

    .venv/bin/python benchmarks/pins.py [--others 0,300,3000] [--blocks 100] [--rounds 20]

Prints CPU ms of the process (the best of `--rounds`, since the machine has other load) and Valkey
function calls, for a pin and for its end, on a real Valkey and the tests' database. The other
contexts have chains of as many blocks. "apart": they share no block with the measured context.
"shared": the first half of all chains is the same, as with a common system prompt.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests")]

from support import testsettings  # noqa: E402

django.setup()

from django.core.management import call_command  # noqa: E402
from django.utils import timezone  # noqa: E402

from catalog.models import Context  # noqa: E402
from contexts import pins  # noqa: E402
from neve.formats.keys import BucketKeys  # noqa: E402
from retention import provisioning  # noqa: E402
from storage import hot  # noqa: E402
from support.rows import make_context, make_space, make_tenant  # noqa: E402
from support.servers import ValkeyServer  # noqa: E402
from support.tenant_world import ACTOR  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402

SIZE_BYTES = 1000


def chains(count: int, blocks: int, *, are_shared: bool) -> Iterator[bytes]:
    common = os.urandom(16 * (blocks // 2))
    for _ in range(count):
        head = common if are_shared else os.urandom(len(common))
        yield head + os.urandom(16 * blocks - len(head))


def context_among(others: int, blocks: int, *, are_shared: bool) -> Context:
    """A stored, unpinned context in a space with `others` pinned contexts."""
    space = make_space(make_tenant(hot_bytes=1 << 28))
    own, *rest = chains(others + 1, blocks, are_shared=are_shared)
    until = timezone.now() + timedelta(days=1)
    with tenant_scope(space.tenant_id):
        Context.objects.bulk_create(
            (
                Context(
                    tenant_id=space.tenant_id, space=space, name=f"other-{n}", chain=chain,
                    blocks=blocks, tokens=256 * blocks, pinned_until=until,
                )
                for n, chain in enumerate(rest)
            ),
            batch_size=100,
        )  # fmt: skip
    ids = [own[i : i + 16] for i in range(0, len(own), 16)]
    for first in range(0, len(ids), 1000):
        part = ids[first : first + 1000]
        for id_ in part:
            key = BucketKeys(space.tenant_id, 0).block(space.pk, id_)
            hot.admin().set(key, bytes(SIZE_BYTES), px=60_000)
        hot.hot_tier(space.tenant_id).commit(space.pk, [(id_, SIZE_BYTES, 256) for id_ in part])
    return make_context(space, "own", ids)


def measure(context: Context, rounds: int) -> dict[str, tuple[float, int]]:
    """Operation → (CPU ms, function calls) of the cheapest pin and the cheapest unpin."""
    until = timezone.now() + timedelta(days=2)  # later than the ends of all others
    changes: dict[str, Callable[[], object]] = {
        "pin": lambda: pins.pin(context=context, until=until, actor=ACTOR),
        "unpin": lambda: pins.unpin(context=context, actor=ACTOR),
    }
    best = dict.fromkeys(changes, (float("inf"), 0))
    for _ in range(rounds):
        for name, change in changes.items():
            calls, began = function_calls(), time.process_time()
            change()
            cpu_ms = 1e3 * (time.process_time() - began)
            best[name] = min(best[name], (cpu_ms, function_calls() - calls))
    return best


def function_calls() -> int:
    return int(hot.admin().info("commandstats").get("cmdstat_fcall", {}).get("calls", 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--others", default="0,300,3000")
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    call_command("migrate", verbosity=0)
    with ValkeyServer(Path(testsettings.FOLDER, "hot"), port=testsettings.HOT_PORT):
        provisioning.provision()
        print(f"chains of {asked.blocks} blocks")
        print(f"{'other pinned contexts':>22} {'pin: ms':>8} calls {'unpin: ms':>9} calls")
        for are_shared in (False, True):
            for others in map(int, asked.others.split(",")):
                own = context_among(others, asked.blocks, are_shared=are_shared)
                (pin_ms, asked_by_pin), (unpin_ms, asked_by_unpin) = measure(
                    own, asked.rounds
                ).values()
                name = "shared" if are_shared else "apart"
                print(
                    f"{others:>15} {name:>6} {pin_ms:>8.1f} {asked_by_pin:>5}"
                    f" {unpin_ms:>9.1f} {asked_by_unpin:>5}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
