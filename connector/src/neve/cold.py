"""Reads blocks out of S3 segments: presigned addresses, few large ranged GETs, all verified.

Planning is pure (`plan_ranges`); `ColdReader` does it. What to count and whom to tell of corrupt
blocks is `neve.client`'s business.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import urllib3

from neve.block import HEADER_BYTES, verify
from neve.errors import Corrupt, DeadlineExceeded, MissReason, NeveError, Unavailable

# Reading a gap is cheaper than another request up to about what S3 sends in one request's latency.
GAP_BYTES: Final = 256 << 10
RANGE_BYTES: Final = 16 << 20
_PIECE_BYTES: Final = 256 << 10  # read between two looks at the clock
_URL_MARGIN_S: Final = 30.0

SegmentUrls = Callable[[Sequence[int]], tuple[dict[int, str], float]]


@dataclass(slots=True)
class ColdBlock:
    """A block to read. `index` is the caller's; the 64 bytes at `offset` go to `header`."""

    index: int
    id: bytes
    segment: int
    offset: int
    payload: memoryview
    header: bytearray = field(default_factory=lambda: bytearray(HEADER_BYTES))

    @property
    def end(self) -> int:
        return self.offset + HEADER_BYTES + len(self.payload)


def plan_ranges(blocks: Iterable[ColdBlock]) -> list[list[ColdBlock]]:
    """Groups of blocks that one request reads: same segment, neighbours, 16 MiB at most."""
    groups: list[list[ColdBlock]] = []
    for block in sorted(blocks, key=lambda block: (block.segment, block.offset)):
        last = groups[-1] if groups else None
        if (
            last is not None
            and last[-1].segment == block.segment
            and 0 <= block.offset - last[-1].end <= GAP_BYTES
            and block.end - last[0].offset <= RANGE_BYTES
        ):
            last.append(block)
        else:
            groups.append([block])
    return groups


class ColdReader:
    """Ranged GETs over a pool of connections. For any thread.

    `segment_urls(numbers)` gives presigned addresses and their lifetime in seconds; it may raise
    `Unavailable` or `Refused`.
    """

    def __init__(self, segment_urls: SegmentUrls, *, connections: int) -> None:
        self._segment_urls = segment_urls
        self._urls: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False)

    def read(
        self, group: Sequence[ColdBlock], *, deadline: float, also: Sequence[int] = ()
    ) -> tuple[list[MissReason | None], NeveError | None]:
        """Fills the payloads of one group of `plan_ranges`.

        Returns None or why not for each block, and the trouble that ended the reading early, if
        any: it speaks of the storage, not of the blocks. Never raises it.
        `also`: segments that will be asked for next, so that one request gets all addresses.
        """
        outcomes: list[MissReason | None] = []
        trouble: NeveError | None = None
        try:
            outcomes.extend(self._outcomes(group, deadline, also))  # keeps what came before trouble
        except DeadlineExceeded as error:
            trouble = error
        except urllib3.exceptions.NewConnectionError as error:  # a TimeoutError only by name
            trouble = Unavailable(f"S3: {error}")
        except urllib3.exceptions.TimeoutError as error:
            trouble = DeadlineExceeded(f"S3: {error}")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            trouble = Unavailable(f"S3: {error}")
        except NeveError as error:
            trouble = error
        late = isinstance(trouble, DeadlineExceeded)
        rest = MissReason.TIMEOUT if late else MissReason.BREAKER
        return outcomes + [rest] * (len(group) - len(outcomes)), trouble

    def close(self) -> None:
        self._pool.clear()

    def _outcomes(
        self, group: Sequence[ColdBlock], deadline: float, also: Sequence[int]
    ) -> Iterator[MissReason | None]:
        segment = group[0].segment
        for attempt in (0, 1):
            url = self._url(segment, also, deadline)
            if url is None:
                yield from [MissReason.EVICTED] * len(group)
                return
            # Leaving the block closes a connection whose answer was not read to its end.
            with self._pool.request(
                "GET",
                url,
                headers={"Range": f"bytes={group[0].offset}-{group[-1].end - 1}"},
                timeout=urllib3.Timeout(total=_left(deadline)),
                preload_content=False,
                decode_content=False,
            ) as response:
                if response.status == 206:
                    yield from _read_blocks(response, group, deadline)
                    response.drain_conn()
                    return
                self._forget_url(segment)
                if response.status == 404:
                    yield from [MissReason.EVICTED] * len(group)
                    return
                if response.status != 403 or attempt:
                    raise Unavailable(f"S3 answered {response.status} to a ranged GET")
                # 403: the address has expired, or was signed with a key that was rotated.

    def _url(self, segment: int, also: Sequence[int], deadline: float) -> str | None:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded("no segment address in time")
        try:
            now = time.monotonic()
            known = self._urls.get(segment)
            if known is None or known[1] < now:
                fresh = {
                    number
                    for number in (segment, *also)
                    if number not in self._urls or self._urls[number][1] < now
                }
                urls, lifetime_s = self._segment_urls(sorted(fresh))
                until = now + max(0.0, lifetime_s - _URL_MARGIN_S)
                self._urls = {n: known for n, known in self._urls.items() if known[1] >= now}
                self._urls.update((number, (url, until)) for number, url in urls.items())
                return urls.get(segment)
            return known[0]
        finally:
            self._lock.release()

    def _forget_url(self, segment: int) -> None:
        with self._lock:
            self._urls.pop(segment, None)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("S3 did not answer in time")
    return left


def _read_blocks(
    response: urllib3.BaseHTTPResponse, group: Sequence[ColdBlock], deadline: float
) -> Iterator[MissReason | None]:
    at = group[0].offset
    waste = memoryview(bytearray(GAP_BYTES))
    for block in group:
        _read_into(response, waste[: block.offset - at], deadline)
        _read_into(response, memoryview(block.header), deadline)
        _read_into(response, block.payload, deadline)
        at = block.end
        try:
            verify(block.header, block.payload, expect_id=block.id)
        except Corrupt:
            yield MissReason.CORRUPT
        else:
            yield None


def _read_into(response: urllib3.BaseHTTPResponse, view: memoryview, deadline: float) -> None:
    """Fills `view`, a piece at a time, so that a slow server cannot outlast the deadline."""
    filled = 0
    while filled < len(view):
        left = _left(deadline)
        sock = getattr(response.connection, "sock", None)  # None once the answer is read
        if sock is not None:
            sock.settimeout(left)
        piece = response.read1(min(_PIECE_BYTES, len(view) - filled))
        if not piece:
            raise Unavailable("S3 sent less than it announced")
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
