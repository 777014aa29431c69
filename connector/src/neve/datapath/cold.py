"""Reads blocks out of S3 segments: presigned addresses, few large ranged GETs, all verified.

Planning is pure (`plan_ranges`), and so is the next step after an answer (`next_step`). The bytes
are moved and verified by the core (`neve._core.RangedGets`), without the GIL. Counting, and telling
the index of corrupt blocks, is the business of `neve.datapath.client`.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Final
from urllib.parse import parse_qs, urlsplit

from neve import _core
from neve.datapath.hedging import Hedges, ReadStop
from neve.datapath.payload import Payload
from neve.datapath.status import Status
from neve.errors import DeadlineExceeded, MissReason, NeveError, Refused, Unavailable
from neve.formats.block import HEADER_BYTES, PLAIN
from neve.node.stats import Stats

# Reading a gap is cheaper than another request up to about what S3 sends in one request's latency.
GAP_BYTES: Final = 256 << 10
# Source: "Best practices design patterns", Amazon S3 user guide: ranges of 8–16 MB.
RANGE_BYTES: Final = 16 << 20
# Smaller ones would wait longer for their first byte than for the rest.
LEAST_RANGE_BYTES: Final = 4 << 20
MOST_TRIES: Final = 4  # of one range, where S3 was busy or the connection broke
FIRST_PAUSE_S: Final = 0.05
_URL_MARGIN_S: Final = 30.0
_LEAST_URL_S: Final = 1.0  # an address that ends sooner was signed for the read that asked
_MOST_RENEWED: Final = 1000  # segments that the platform answers for in one request
_SKEW_S: Final = 60.0  # clocks that differ by less are no reason to refuse an address

# Addresses of segments (empty: its store is away) and their lifetime in seconds; the second
# argument bounds the wait.
SegmentUrls = Callable[[Sequence[int], float], tuple[dict[int, str], float]]


@dataclass(slots=True)
class ColdBlock:
    """A block to read. `index` is the caller's; the 64 bytes at `offset` go to `header`.

    `codec`: of the copy in the segment, where its payload takes `encoded_bytes`; `payload` gets it
    decoded. With a codec but `encoded_bytes` 0 the payload is taken as it stands.
    """

    index: int
    id: bytes
    segment: int
    offset: int
    payload: Payload
    header: bytearray = field(default_factory=lambda: bytearray(HEADER_BYTES))
    codec: int = PLAIN
    encoded_bytes: int = 0

    def copy(self) -> "ColdBlock":
        """The same block, to be read into memory of its own."""
        payload = memoryview(bytearray(len(self.payload)))
        return replace(self, payload=payload, header=bytearray(HEADER_BYTES))

    @property
    def end(self) -> int:
        return self.offset + HEADER_BYTES + (self.encoded_bytes or len(self.payload))


def plan_ranges(blocks: Iterable[ColdBlock], *, streams: int = 1) -> list[list[ColdBlock]]:
    """Groups of blocks that one request reads: neighbours in one segment, 16 MiB at most.

    Gaps are read over up to 256 KiB each and, in one group, as many bytes as its blocks have.
    Groups are smaller when `streams` requests at a time would otherwise have nothing to do.
    """
    ordered = sorted(blocks, key=lambda block: (block.segment, block.offset))
    share = sum(block.end - block.offset for block in ordered) // streams
    most = min(RANGE_BYTES, max(LEAST_RANGE_BYTES, share))
    groups: list[list[ColdBlock]] = []
    wanted = 0  # bytes of the last group's blocks
    for block in ordered:
        size = block.end - block.offset
        last = groups[-1] if groups else None
        if (
            last is not None
            and last[-1].segment == block.segment
            and 0 <= block.offset - last[-1].end <= GAP_BYTES
            and block.end - last[0].offset <= min(most, 2 * (wanted + size))
        ):
            last.append(block)
            wanted += size
        else:
            groups.append([block])
            wanted = size
    return groups


class Next(Enum):
    """What to do after an answer."""

    DONE = auto()
    GONE = auto()  # no such segment
    SHORT = auto()  # the segment ends before these blocks
    NEW_ADDRESS = auto()  # this one has expired, or leads elsewhere
    LATER = auto()  # S3 is busy, or has trouble of its own
    GIVE_UP = auto()


# 400: an expired session token, among others. Source: "Error responses", Amazon S3 API reference.
_NEXT: Final = {
    **dict.fromkeys((301, 302, 303, 307, 308, 400, 401, 403), Next.NEW_ADDRESS),
    **dict.fromkeys((408, 429, 500, 502, 503, 504), Next.LATER),
    404: Next.GONE,
    416: Next.SHORT,
}
_REFUSED: Final = (400, 401, 403)


def next_step(status: int, *, fits: bool) -> Next:
    """`fits`: the answer has the bytes that were asked for, or the first of them."""
    return Next.DONE if fits else _NEXT.get(status, Next.GIVE_UP)


def pause_s(tries: int, retry_after_s: float) -> float:
    """How long to wait after so many tries: twice as long each time, spread by chance."""
    return max(retry_after_s, FIRST_PAUSE_S * 2.0 ** (tries - 1) * random.uniform(0.5, 1.0))


class AddressRefused(Refused):
    """S3 answered, and refuses addresses that the control plane signs. `reason`: CLOCK, DENIED."""

    def __init__(self, detail: str, *, reason: MissReason, status: int) -> None:
        super().__init__(detail, status=status)
        self.reason = reason


def refusal(url: str, answer: _core.Answer) -> AddressRefused:
    """Why S3 answered 400, 401 or 403 to an address that was signed just before."""
    code, message = error_of(answer.error)
    said = f"S3 answered {answer.status} {code}".rstrip()
    said += f" ({message})" if message else ""
    ahead_s = _ahead_s(url, answer.date)
    if code == "RequestTimeTooSkewed" or (ahead_s is not None and abs(ahead_s) > _SKEW_S):
        where = "" if ahead_s is None else f" by {abs(ahead_s):.0f} s"
        order = "behind" if ahead_s is not None and ahead_s < 0 else "ahead of"
        detail = (
            f"{said}: its clock is {order} that of the control plane{where}, which signs the "
            "addresses: set both by NTP"
        )
        return AddressRefused(detail, reason=MissReason.CLOCK, status=answer.status)
    detail = (
        f"{said}: check NEVE_S3_ACCESS_KEY, NEVE_S3_SECRET_KEY and NEVE_S3_REGION of the control "
        "plane, and what that key may read"
    )
    return AddressRefused(detail, reason=MissReason.DENIED, status=answer.status)


def error_of(document: bytes) -> tuple[str, str]:
    """Code and message of S3's error document; empty where there is none, or it breaks off.

    Source: "Error responses", Amazon S3 API reference.
    """
    text = document.decode(errors="replace")
    found = (re.search(rf"<{name}>([^<]{{1,300}})</{name}>", text) for name in ("Code", "Message"))
    code, message = (match[1] if match else "" for match in found)
    return code, message


def _ahead_s(url: str, date: bytes) -> float | None:
    """How far S3's clock is ahead of the one that signed `url` just before; None: unknown.

    Source: "Authenticating requests: using query parameters", Amazon S3 API reference.
    """
    signed = parse_qs(urlsplit(url).query).get("X-Amz-Date", [""])[0]
    try:
        at = datetime.strptime(signed, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        return parsedate_to_datetime(date.decode("latin-1")).timestamp() - at
    except (ValueError, OverflowError):
        return None


class ColdReader:
    """Ranged GETs over kept connections. For any thread.

    `segment_urls(numbers, timeout_s)` gives presigned addresses and their lifetime in seconds; it
    may raise `Unavailable` or `Refused`. `ca_file`: for https; by default the host's authorities,
    or those of SSL_CERT_FILE and SSL_CERT_DIR.
    """

    def __init__(
        self,
        segment_urls: SegmentUrls,
        *,
        ca_file: str = "",
        stats: Stats | None = None,
        hedged: bool = True,
    ) -> None:
        """`stats`: counts the requests. `hedged`: see `neve.datapath.hedging`."""
        self._addresses = _Addresses(segment_urls)
        self._stats = stats
        self._gets = _core.RangedGets(ca_file)
        count = Stats().second_request if stats is None else stats.second_request
        self.hedges = Hedges(self._read_again, count) if hedged else None

    @property
    def kept_connections(self) -> int:
        return self._gets.kept

    def read(
        self,
        group: Sequence[ColdBlock],
        *,
        deadline: float,
        also: Sequence[int] = (),
        stop: ReadStop | None = None,
    ) -> tuple[list[MissReason | None], NeveError | None]:
        """Fills the payloads of one group of `plan_ranges`.

        Returns None or the reason of a miss for each block, and the trouble that ended the reading
        early, if any: it concerns the storage, not the blocks. Never raises it.
        `also`: segments that will be asked for next, so that one request gets all addresses.
        `stop` ends it early: the rest is missed by TIMEOUT, without trouble.
        """
        stop = stop or ReadStop()
        if self.hedges is None:
            outcomes, trouble = self._try(group, deadline, also, stop.part())
        else:
            watched = self.hedges.begin(group, deadline, stop)
            outcomes, trouble = self._try(group, deadline, also, watched.first)
            outcomes = self.hedges.end(watched, outcomes)
        whole = not any(outcome is not None for outcome in outcomes)
        return outcomes, None if stop.stopped or whole else trouble

    def _try(
        self, group: Sequence[ColdBlock], deadline: float, also: Sequence[int], stop: _core.Stop
    ) -> tuple[list[MissReason | None], NeveError | None]:
        outcomes: list[MissReason | None] = []
        trouble: NeveError | None = None
        try:
            self._read(group, outcomes, deadline, also, stop)
        except NeveError as error:
            trouble = error
        late = stop.stopped or isinstance(trouble, DeadlineExceeded)
        rest = MissReason.TIMEOUT if late else reason_of(trouble)
        outcomes += [rest] * (len(group) - len(outcomes))
        return outcomes, trouble

    def _read_again(
        self, group: Sequence[ColdBlock], deadline: float, stop: _core.Stop
    ) -> list[MissReason | None]:
        return self._try(group, deadline, (), stop)[0]

    def origin(self, segment: int) -> str | None:
        """Host and port of the S3 store that has the segment; None: no address is known now."""
        url = self._addresses.take(segment)
        return None if url is None else urlsplit(url).netloc

    def locate(
        self, segment: int, also: Sequence[int], deadline: float
    ) -> tuple[list[MissReason | None], NeveError | None]:
        """Asks the platform for the segment's address, as `read` would. Returns one outcome, None
        if there is an address now, and the platform's trouble, if any. Never raises it."""
        try:
            url = self._addresses.find(segment, also, deadline)
        except NeveError as trouble:
            late = isinstance(trouble, DeadlineExceeded)
            return [MissReason.TIMEOUT if late else reason_of(trouble)], trouble
        return [None if url else _without_address(url)], None

    def renew_addresses(self, timeout_s: float) -> None:
        """Fetches anew, in one request, addresses that were used lately and end soon.

        So that no load waits for it. Raises `Unavailable`, `Refused`.
        """
        self._addresses.renew(timeout_s)

    def probe(self, url: str, deadline: float) -> None:
        """Reads the first byte behind a presigned address. Raises
        `AddressRefused`, `Unavailable`, `DeadlineExceeded`."""
        answer = self._gets.get(url, 0, 0, [], deadline=deadline, stop=_core.Stop())
        if answer.failure:
            raise _trouble_of(answer)
        if answer.status in _REFUSED:
            raise refusal(url, answer)
        if not answer.fits:
            raise Unavailable(f"S3 answered {answer.status} {error_of(answer.error)[0]}".rstrip())

    def close(self) -> None:
        if self.hedges is not None:
            self.hedges.close()
        self._gets.close()

    def _read(
        self,
        group: Sequence[ColdBlock],
        outcomes: list[MissReason | None],
        deadline: float,
        also: Sequence[int],
        stop: _core.Stop,
    ) -> None:
        """Appends to `outcomes` block by block, so that a new try goes on where one ended."""
        segment, renewed, tries = group[0].segment, False, 0
        while not stop.stopped and (rest := group[len(outcomes) :]):
            url = self._addresses.find(segment, also, deadline)
            if not url:
                outcomes += [_without_address(url)] * len(rest)
                return
            wanted = [(b.offset, b.id, b.header, b.payload, b.codec, b.encoded_bytes) for b in rest]
            first, last = rest[0].offset, rest[-1].end - 1
            if self._stats is not None:
                self._stats.count(cold_requests=1, cold_fetched_bytes=last + 1 - first)
            answer = self._gets.get(url, first, last, wanted, deadline=deadline, stop=stop)
            outcomes += [Status(each).miss for each in answer.blocks]
            if answer.failure == "stopped":
                return
            if answer.failure not in ("", "broken"):
                raise _trouble_of(answer)
            step = Next.LATER if answer.failure else next_step(answer.status, fits=answer.fits)
            if step is Next.GONE:
                self._addresses.forget(segment, url)
                outcomes += [MissReason.EVICTED] * len(rest)
            elif step is Next.SHORT:
                outcomes += [MissReason.CORRUPT] * len(rest)
            elif step is Next.NEW_ADDRESS and not renewed:
                self._addresses.forget(segment, url)
                renewed = True
            elif step is Next.LATER:
                tries += 1
                wait_s = pause_s(tries, answer.retry_after_s)
                if tries == MOST_TRIES or wait_s >= seconds_left(deadline):
                    raise _trouble_of(answer)
                stop.pause(time.monotonic() + wait_s)
            elif step is Next.NEW_ADDRESS and answer.status in _REFUSED:
                raise refusal(url, answer)
            elif step is not Next.DONE:
                raise _trouble_of(answer)


def _without_address(url: str | None) -> MissReason:
    return MissReason.EVICTED if url is None else MissReason.STORE_AWAY


def _trouble_of(answer: _core.Answer) -> NeveError:
    """The failure of a read as an error."""
    if answer.failure == "late":
        return DeadlineExceeded(f"S3: {answer.trouble}")
    return Unavailable(
        f"S3: {answer.trouble}" if answer.failure else f"S3 answered {answer.status}"
    )


def reason_of(trouble: NeveError | None) -> MissReason:
    """The miss reason of blocks that this trouble kept from being read."""
    return trouble.reason if isinstance(trouble, AddressRefused) else MissReason.BREAKER


@dataclass(slots=True)
class _Address:
    """Until `until` it is used, from `renew_at` on it is renewed if it was used. Monotonic, s."""

    url: str
    renew_at: float
    until: float
    used: bool = False


class _Addresses:
    """Presigned addresses, each kept until shortly before it expires. For any thread."""

    def __init__(self, segment_urls: SegmentUrls) -> None:
        self._segment_urls = segment_urls
        self._known: dict[int, _Address] = {}
        self._lock = threading.Lock()
        self._asking = threading.Lock()  # one request to the platform at a time

    def find(self, segment: int, also: Sequence[int], deadline: float) -> str | None:
        """None when there is no such segment, empty while its store is away. Raises `Unavailable`,
        `Refused`, `DeadlineExceeded`.

        Known addresses come at once. One request to the platform at a time names unknown segments,
        those of `also` as well.
        """
        if (url := self.take(segment)) is not None:
            return url
        if not self._asking.acquire(timeout=seconds_left(deadline)):
            raise DeadlineExceeded("no segment address in time")
        try:
            if (url := self.take(segment)) is not None:
                return url  # the request before asked for it
            now = time.monotonic()
            with self._lock:
                self._known = {n: known for n, known in self._known.items() if known.until >= now}
                unknown = {segment, *also} - set(self._known)
            answer = self._segment_urls(sorted(unknown), seconds_left(deadline))
            with self._lock:
                self._keep(*answer, now)
                known = self._known.get(segment)
                if known is not None:
                    known.used = True
            return answer[0].get(segment) if known is None else known.url
        finally:
            self._asking.release()

    def take(self, segment: int) -> str | None:
        """A known address that has not ended, which counts as used."""
        with self._lock:
            known = self._known.get(segment)
            if known is None or known.until < time.monotonic():
                return None
            known.used = True
            return known.url

    def renew(self, timeout_s: float) -> None:
        """Asks without the lock: meanwhile loads use what is known."""
        with self._lock:
            now = time.monotonic()
            due = [n for n, known in self._known.items() if known.used and known.renew_at <= now]
        if due:
            answer = self._segment_urls(sorted(due)[:_MOST_RENEWED], timeout_s)
            with self._lock:
                self._keep(*answer, now)

    def _keep(self, urls: dict[int, str], lifetime_s: float, asked_at: float) -> None:
        until = asked_at + max(_LEAST_URL_S, lifetime_s - _URL_MARGIN_S)
        renew_at = asked_at + lifetime_s / 2
        for number, url in urls.items():
            if url:
                self._known[number] = _Address(url, renew_at, until)
            else:  # asked for again with the next load
                self._known.pop(number, None)

    def forget(self, segment: int, url: str) -> None:
        """Drops `url`, unless another thread has got a newer one meanwhile."""
        with self._lock:
            if segment in self._known and self._known[segment].url == url:
                del self._known[segment]


def seconds_left(deadline: float) -> float:
    """More than 0. Raises `DeadlineExceeded`."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("S3 did not answer in time")
    return left
