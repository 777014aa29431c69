"""Runs every attack, before and after, and prints what the neighbour felt."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from threading import Event

from attacks.arena import Arena
from attacks.hostile import ATTACKS
from attacks.neighbour import Neighbour
from support.servers import S3Server

COLUMNS = "{:30} {:7} {:>7} {:>8} {:>11} {:>13} {:>12}  {}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="of each attack")
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    parser.add_argument("--after", action="store_true", help="only with what protects tenants now")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="neve-attacks-"))
    print(
        COLUMNS.format(
            "attack", "bounds", "served", "refused", "longest s", "last trouble", "cut off", "why"
        )
    )
    print(COLUMNS.format("", "", "blocks", "blocks", "wait", "after s", "after s", ""), flush=True)
    try:
        with S3Server(folder / "s3") as s3:
            for before in (False,) if options.after else (True, False):
                with Arena(folder / f"before-{before}", s3, before=before) as arena:
                    for name in ATTACKS:
                        if options.only in name:
                            report(arena, name, options.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(arena: Arena, name: str, seconds: float) -> None:
    begun = time.time()

    def wait(neighbour: Neighbour) -> None:
        time.sleep(seconds)

    neighbour, hostile = arena.fight(ATTACKS[name], Event(), until=wait)
    at, why = arena.cut_off()
    trouble = neighbour.last_trouble_s
    reasons = " ".join(f"{reason}:{count}" for reason, count in neighbour.why.items())
    print(
        COLUMNS.format(
            name,
            "before" if arena.before else "now",
            neighbour.served,
            neighbour.refused,
            f"{neighbour.longest_s:.2f}",
            "never" if trouble is None else f"{trouble:.1f}",
            "no" if at is None else f"{at - begun:.1f}",
            reasons + (f" ({why})" if why else ""),
        ),
        flush=True,
    )
    arena.make_good(hostile.tenant_id)


if __name__ == "__main__":
    main()
