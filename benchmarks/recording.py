"""What the ring of requests costs a scheduler at the end of a request.

    .venv/bin/python benchmarks/recording.py

Prints microseconds of one `neve.engine.recording.record`, best of 7: without terms (no ring), not
kept (99 of 100 requests), kept, and kept with a miss, whose prompt of 32,768 tokens the heartbeat's
thread hashes later. Steps of the engine call nothing of it.
"""

import timeit
from types import SimpleNamespace
from typing import Any

from neve.engine.chains import Chain, Origin
from neve.engine.recording import record
from neve.engine.step import NewRequest
from neve.engine.table import Request
from neve.formats.ids import BlockHasher
from neve.node.requests import Kin, RequestRing, RingTerms

TOKENS, CHUNK = 32_768, 256
ROUNDS = 2000


def main() -> None:
    ring = RequestRing()
    client = SimpleNamespace(stats=SimpleNamespace(requests=ring))
    table: Any = SimpleNamespace(links=[SimpleNamespace(client=client)])
    kin = (Kin(1, bytes(32), CHUNK),)
    hit, miss = _request(found=TOKENS // CHUNK), _request(found=0)
    for words, request, terms in (
        ("no ring", hit, None),
        ("not kept", hit, RingTerms(10**9)),
        ("kept", hit, RingTerms(1)),
        ("kept, missed", miss, RingTerms(1, kin)),
    ):
        ring.set_terms(terms)
        ring.why_kept(failed=False, slow=False, asked=False)

        def once(request: Request = request) -> None:
            record(table, request)

        def empty() -> None:
            for waiting in ring._waiting.values():
                waiting.clear()

        rounds = ROUNDS if terms is None or terms.one_in > 1 else 40
        best = min(timeit.repeat(once, setup=empty, repeat=7, number=rounds)) / rounds
        print(f"{words:14}{1e6 * best:8.2f} µs")


def _request(*, found: int) -> Request:
    tokens = list(range(TOKENS))
    request = Request(NewRequest("r", tokens, TOKENS), Origin())
    request.chain = Chain(tokens, [BlockHasher(bytes(32), CHUNK)], Origin())
    request.chain.extend(TOKENS // CHUNK)
    seen = request.seen
    seen.end, seen.found, seen.match_s = TOKENS // CHUNK, found, 0.001
    return request


if __name__ == "__main__":
    main()
