"""Requests to simulated tiers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SCAN_BLOCKS = 240  # blocks of one scan
FIRST_SCANNED = 1 << 62  # first id of a scanned block; ids of a trace are lower


@dataclass(frozen=True)
class BlockRequest:
    """Asks for `ids`, a chain's blocks in order, at `at_s` seconds.

    `is_scan`: its blocks are asked for only once, so no hit is expected. `was_cold`: its blocks
    were already in S3; else they were never stored. `tokens`: of the prompt; None: unknown.
    `priority`: of the blocks that it stores; lower ones leave first.
    """

    ids: tuple[int, ...]
    at_s: float
    is_scan: bool = False
    was_cold: bool = False
    tokens: int | None = None
    priority: int = 0


def with_scans(requests: Iterable[BlockRequest], *, was_cold: bool) -> Iterator[BlockRequest]:
    """Adds scans of SCAN_BLOCKS that ask for as many blocks in total as `requests`."""
    owed, next_id = 0, FIRST_SCANNED
    for request in requests:
        yield request
        owed += len(request.ids)
        while owed >= SCAN_BLOCKS:
            ids = tuple(range(next_id, next_id + SCAN_BLOCKS))
            yield BlockRequest(ids, request.at_s, is_scan=True, was_cold=was_cold)
            owed, next_id = owed - SCAN_BLOCKS, next_id + SCAN_BLOCKS
