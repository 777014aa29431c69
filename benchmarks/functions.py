"""Server time of the hot tier's functions, compared with another version of the library.

    git show 4e1132e~1:connector/src/neve/index/functions.lua > /tmp/before.lua
    .venv/bin/python benchmarks/functions.py --before /tmp/before.lua [--ids 1000] [--rounds 30]

Prints µs per id: Valkey's time for FCALL (`INFO commandstats`), the best of `--rounds`, since the
machine has other load. Both versions take turns on one server, each with blocks of its own. A
commit has 256 new blocks; commits into a full tier evict as many; then again with as many
tombstones as a bucket remembers.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import valkey

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from neve.formats.keys import BucketKeys  # noqa: E402
from neve.index.library import call, functions_source  # noqa: E402
from neve.index.tier import BlockTerms, HotTier, commit_args  # noqa: E402
from support.servers import ValkeyServer  # noqa: E402

TENANT, SPACE, SIZE, COMMIT_IDS = 7, 3, 100, 256
TOMBSTONES_KEPT = 20_000  # of a bucket
KEYS = BucketKeys(TENANT, 0)


class Library:
    """One version of the library. `us`: operation → best µs per id."""

    def __init__(self, client: valkey.Valkey, source: str) -> None:
        self._client, self._source = client, source
        self.us: dict[str, float] = {}

    def round(self, ids: Sequence[bytes]) -> None:
        self._client.flushall()
        self._client.execute_command("FUNCTION", "LOAD", "REPLACE", self._source)
        has_locate = 'register("locate"' in self._source
        # The look-up function that nodes of the library's version call.
        read = "locate" if has_locate else "match"
        self._quota(len(ids))
        self._commit("commit", ids)
        self._time("locate", len(ids), call(read, KEYS, "1", *ids))
        if has_locate:
            self._time("match, old node", len(ids), call("match", KEYS, "1", *ids))
        self._time("touch", len(ids), call("touch", KEYS, *ids))
        reads = 'register("removals"' in self._source
        begin = call("removals", KEYS, SPACE, -1, len(ids))
        mark = self._client.execute_command(*begin)[0] if reads else 0
        self._commit("commit, evicting", [id_[:15] + b"\xff" for id_ in ids])
        if reads:
            self._time("removals", len(ids), call("removals", KEYS, SPACE, mark, len(ids)))
        # Each further tombstone makes room by forgetting the oldest.
        oldest = {n.to_bytes(16, "big"): n for n in range(TOMBSTONES_KEPT)}
        self._client.zadd(KEYS.bookkeeping[5], oldest)
        self._commit("commit, forgetting", [id_[:15] + b"\xfe" for id_ in ids])

    def _quota(self, blocks: int) -> None:
        tier = HotTier(self._client.execute_command, TENANT)
        terms = BlockTerms(flush_after_s=None)
        tier.set_policy(hot_bytes=blocks * SIZE, cold_bytes=1, terms=terms)

    def _commit(self, what: str, ids: Sequence[bytes]) -> None:
        for first in range(0, len(ids), COMMIT_IDS):
            part = ids[first : first + COMMIT_IDS]
            block_keys = tuple(KEYS.block(SPACE, id_) for id_ in part)
            pipe = self._client.pipeline(transaction=False)
            for key in block_keys:
                pipe.set(key, bytes(SIZE), px=60_000)
            pipe.execute()
            args = commit_args(SPACE, ((id_, SIZE, 16) for id_ in part))
            self._time(what, len(part), call("commit", KEYS, *args, blocks=block_keys))

    def _time(self, what: str, ids: int, command: Sequence[object]) -> None:
        self._client.config_resetstat()
        self._client.execute_command(*command)
        us = self._client.info("commandstats")["cmdstat_fcall"]["usec"] / ids
        self.us[what] = min(self.us.get(what, math.inf), us)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--ids", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    ids = [n.to_bytes(16, "little") for n in range(options.ids)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(Path(folder)) as server,
        server.client() as client,
    ):
        before = Library(client, options.before.read_text())
        now = Library(client, functions_source())
        for _ in range(options.rounds):
            before.round(ids)
            now.round(ids)
    print(f"{'µs of an id':18}{'before':>8}{'now':>8}{'now / before':>14}")
    for what, us in now.us.items():
        was = before.us.get(what, math.nan)
        print(f"{what:18}{was:8.2f}{us:8.2f}{us / was:14.2f}")


if __name__ == "__main__":
    main()
