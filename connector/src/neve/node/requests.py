"""A node's ring of recent requests: what each asked, found and loaded. No prompts, no answers.

Kept are all failed and slow requests, those that ask for it, one of `one_in` of the others, and of
these one in EVERY_S at least. Heartbeats carry them; the platform keeps them for a day.

A record has the ids of at most CELLS of the prompt's chunks, evenly spaced, and the same under the
fingerprints of other spaces of the tenant, so that people see where the same prefix is stored.
"""

import math
import threading
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Self

from neve.errors import MissReason, Misuse
from neve.formats.ids import ID_BYTES
from neve.formats.space import is_plain

CELLS: Final = 128
MOST_KIN: Final = 2
MOST_SENT: Final = 16  # of one heartbeat
MOST_SENT_BYTES: Final = 96 << 10
MOST_WAITING: Final = 48  # of each kind; while more wait, further ones are left out
MOST_NAME: Final = 200
MOST_AGE_S: Final = 3600.0
EVERY_S: Final = 300.0
SLOW_S: Final = 1.0
MOST_TOKENS: Final = 2**31 - 1
MOST_MS: Final = 1e9


class Kept(StrEnum):
    """Why a request is in the ring."""

    SAMPLED = "sampled"
    SLOW = "slow"  # it waited SLOW_S for Neve, or longer than computing would have taken
    FAILED = "failed"  # the look-up or the load
    ASKED = "asked"  # by the request's own parameters


class Outcome(StrEnum):
    """What became of the found prefix: a decision of `neve.planner.choice`, or one of two more."""

    LOAD_ALL = "load_all"
    LOAD_PREFIX = "load_prefix"
    RECOMPUTE = "recompute"
    NOTHING = "nothing"  # nothing was found, or nothing looked for
    COMPARED = "compared"  # computed all the same, to compare (`neve.engine.canary`)


@dataclass(frozen=True)
class Kin:
    """Another space of the tenant whose blocks the same prompt may have. `heads`: each KV head of a
    chunk is a block of its own."""

    space_id: int
    fingerprint: bytes
    chunk_tokens: int
    heads: bool = False


@dataclass(frozen=True)
class RingTerms:
    """The platform's answer: keep one of `one_in`; look under these other fingerprints, too."""

    one_in: int
    kin: tuple[Kin, ...] = ()

    @classmethod
    def from_answer(cls, answer: object) -> Self | None:
        """None: keep nothing; also if the answer can't be read, or an older platform has none."""
        if not isinstance(answer, Mapping):
            return None
        one_in, kin = answer.get("one_in"), answer.get("kin", ())
        if type(one_in) is not int or one_in < 1 or not isinstance(kin, list | tuple):
            return None
        try:
            return cls(one_in, tuple(map(_kin, kin[:MOST_KIN])))
        except (KeyError, TypeError, ValueError):
            return cls(one_in)


@dataclass(frozen=True)
class Cells:
    """Ids of every `stride`-th chunk of a chain, the first one included, ID_BYTES each."""

    stride: int = 1
    ids: bytes = b""

    @classmethod
    def of(cls, ids: Sequence[bytes]) -> Self:
        """`ids`: of all chunks."""
        stride = max(1, math.ceil(len(ids) / CELLS))
        return cls(stride, b"".join(ids[::stride]))

    def each(self) -> list[bytes]:
        return [self.ids[at : at + ID_BYTES] for at in range(0, len(self.ids), ID_BYTES)]


@dataclass(frozen=True)
class RequestRecord:
    """One finished request.

    `number`: of the records of its session. `at_s`: when it ended, by the ring's clock. Tokens of
    the prompt: `local_tokens` were in the engine's own cache; Neve was asked for `asked_tokens`
    behind them, in whole chunks. `miss_chunk`: the first chunk, counted from the prompt's
    beginning, that was not found; its first block is `miss_id`. `match_ms`, `load_ms`: None: it
    was not asked, or not loaded.
    """

    name: str
    kept: Kept
    at_s: float
    number: int = 0
    prompt_tokens: int = 0
    local_tokens: int = 0
    asked_tokens: int = 0
    found_tokens: int = 0
    loaded_tokens: int = 0
    miss_chunk: int | None = None
    miss_id: bytes = b""
    reason: MissReason | None = None
    outcome: Outcome = Outcome.NOTHING
    match_ms: float | None = None
    load_ms: float | None = None
    load_failed: bool = False
    chain: Cells = Cells()
    kin: tuple[tuple[int, Cells], ...] = ()  # by number of the space

    def as_dict(self, now_s: float) -> dict[str, Any]:
        """The heartbeat's object; its age replaces the time, whatever the clocks say."""
        found: dict[str, Any] = {
            name: getattr(self, name)
            for name in (*_COUNTS, "name", "match_ms", "load_ms", "load_failed")
        }
        return found | {
            "outcome": self.outcome.value,
            "kept": self.kept.value,
            "age_s": round(min(MOST_AGE_S, max(0.0, now_s - self.at_s)), 3),
            "miss_chunk": self.miss_chunk,
            "miss_id": self.miss_id.hex(),
            "reason": None if self.reason is None else self.reason.value,
            "chain": _cells_out(self.chain),
            "kin": [{"space": id_, **_cells_out(cells)} for id_, cells in self.kin],
        }

    @classmethod
    def from_dict(cls, raw: object, now_s: float) -> Self:
        """Inverse of `as_dict`. Raises `Misuse` with the field that is wrong or unknown."""
        if not isinstance(raw, Mapping):
            raise Misuse("need an object", field="requests")
        if raw.keys() != _MEMBERS:
            odd = sorted(map(str, raw.keys() ^ _MEMBERS))[0]
            raise Misuse("is missing or unknown", field=odd[:60])
        name = raw["name"]
        if not (isinstance(name, str) and 0 < len(name) <= MOST_NAME and is_plain(name)):
            raise Misuse(f"need 1 to {MOST_NAME} characters", field="name")
        if type(raw["load_failed"]) is not bool:
            raise Misuse("need true or false", field="load_failed")
        kin = raw["kin"]
        if not isinstance(kin, list) or len(kin) > MOST_KIN:
            raise Misuse(f"need a list of at most {MOST_KIN}", field="kin")
        miss_id = _hex(raw["miss_id"])
        return cls(
            name=name,
            kept=Kept(_one_of(raw, "kept", tuple(Kept))),
            at_s=now_s - _amount(raw, "age_s", MOST_AGE_S),
            miss_chunk=None if raw["miss_chunk"] is None else _count(raw, "miss_chunk"),
            miss_id=miss_id,
            reason=None
            if raw["reason"] is None
            else MissReason(_one_of(raw, "reason", tuple(MissReason))),
            outcome=Outcome(_one_of(raw, "outcome", tuple(Outcome))),
            match_ms=None if raw["match_ms"] is None else _amount(raw, "match_ms", MOST_MS),
            load_ms=None if raw["load_ms"] is None else _amount(raw, "load_ms", MOST_MS),
            load_failed=raw["load_failed"],
            chain=_cells_in(raw["chain"]),
            kin=tuple(_kin_in(each) for each in kin),
            **{count: _count(raw, count) for count in _COUNTS},
        )


_COUNTS: Final = (
    *("number", "prompt_tokens", "local_tokens", "asked_tokens", "found_tokens", "loaded_tokens"),
)
_MEMBERS: Final = frozenset(
    (
        *(*_COUNTS, "name", "kept", "age_s", "miss_chunk", "miss_id", "reason", "outcome"),
        *("match_ms", "load_ms", "load_failed", "chain", "kin"),
    )
)

# Of another space: the prompt's chain there. Called by the heartbeat's thread.
ChainOf = Callable[[Kin], Cells]


class RequestRing:
    """Thread-safe. The engine's thread adds, the heartbeat's thread takes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._terms: RingTerms | None = None
        self._lock = threading.Lock()
        self._seen = 0
        self._number = 0
        self._sampled_at_s = -math.inf
        self._waiting: dict[bool, deque[tuple[RequestRecord, ChainOf | None]]] = {
            False: deque(),
            True: deque(),  # failed, slow and asked for
        }

    @property
    def terms(self) -> RingTerms | None:
        return self._terms

    def set_terms(self, terms: RingTerms | None) -> None:
        """Applies from the next request on."""
        self._terms = terms
        if terms is None:
            with self._lock:
                for waiting in self._waiting.values():
                    waiting.clear()

    def why_kept(self, *, failed: bool, slow: bool, asked: bool) -> Kept | None:
        """Called once for each request, at its end; None: it is not kept."""
        if self._terms is None:
            return None
        self._seen += 1
        special = failed or slow or asked
        if len(self._waiting[special]) >= MOST_WAITING:
            return None
        if special:
            return Kept.ASKED if asked else Kept.FAILED if failed else Kept.SLOW
        now_s = self.clock()
        if self._seen % self._terms.one_in and now_s - self._sampled_at_s < EVERY_S:
            return None
        self._sampled_at_s = now_s
        return Kept.SAMPLED

    def add(self, record: RequestRecord, chain_of: ChainOf | None = None) -> None:
        """`chain_of`: for a request that missed, whose prefix may be stored in another space."""
        with self._lock:
            self._number += 1
            numbered = replace(record, number=self._number % MOST_TOKENS)
            self._waiting[record.kept is not Kept.SAMPLED].append((numbered, chain_of))

    def take(self) -> list[RequestRecord]:
        """The next records, MOST_SENT and MOST_SENT_BYTES at most; the caller keeps them until
        delivery. Computes the chains in other spaces, here and not on the engine's thread."""
        taken: list[RequestRecord] = []
        size_bytes = 0
        while len(taken) < MOST_SENT and (found := self._next()) is not None:
            record, chain_of = found
            terms = self._terms
            if chain_of is not None and terms is not None:
                kin = tuple((each.space_id, chain_of(each)) for each in terms.kin)
                record = replace(record, kin=kin)
            cells = (record.chain, *(cells for _, cells in record.kin))
            size_bytes += 700 + sum(len(each.ids) * 4 // 3 + 40 for each in cells)
            taken.append(record)
            if size_bytes > MOST_SENT_BYTES - 10_000:  # a record has fewer
                break
        return taken

    def _next(self) -> tuple[RequestRecord, ChainOf | None] | None:
        with self._lock:
            for special in (True, False):
                if self._waiting[special]:
                    return self._waiting[special].popleft()
        return None


def _kin(raw: Mapping[str, Any]) -> Kin:
    found = Kin(
        int(raw["space"]),
        bytes.fromhex(raw["fingerprint"]),
        int(raw["chunk_tokens"]),
        bool(raw.get("heads", False)),
    )
    if len(found.fingerprint) != 32 or found.chunk_tokens < 1:
        raise ValueError
    return found


def _cells_out(cells: Cells) -> dict[str, Any]:
    return {"stride": cells.stride, "ids": b64encode(cells.ids).decode()}


def _cells_in(raw: object) -> Cells:
    if not isinstance(raw, Mapping) or raw.keys() != {"stride", "ids"}:
        raise Misuse("need stride and ids", field="chain")
    text = raw["ids"]
    if not isinstance(text, str) or len(text) > CELLS * ID_BYTES * 4 // 3 + 4:
        raise Misuse(f"need at most {CELLS} ids", field="ids")
    try:
        ids = b64decode(text, validate=True)
    except (Base64Error, ValueError) as error:
        raise Misuse("is no Base64", field="ids") from error
    if len(ids) % ID_BYTES or len(ids) > CELLS * ID_BYTES:
        raise Misuse(f"need at most {CELLS} whole ids", field="ids")
    stride = _count(raw, "stride")
    if not stride:
        raise Misuse("need at least 1", field="stride")
    return Cells(stride, ids)


def _kin_in(raw: object) -> tuple[int, Cells]:
    if not isinstance(raw, Mapping) or raw.keys() != {"space", "stride", "ids"}:
        raise Misuse("need space, stride and ids", field="kin")
    cells = _cells_in({name: raw[name] for name in ("stride", "ids")})
    return _count(raw, "space", 2**63 - 1), cells


def _hex(text: object) -> bytes:
    try:
        found = bytes.fromhex(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if found is None or len(found) not in (0, ID_BYTES):
        raise Misuse(f"need {2 * ID_BYTES} hex digits or none", field="miss_id")
    return found


def _count(raw: Mapping[str, Any], name: str, most: int = MOST_TOKENS) -> int:
    value = raw[name]
    if type(value) is not int or not 0 <= value <= most:
        raise Misuse(f"need 0 to {most}", field=name)
    return value


def _amount(raw: Mapping[str, Any], name: str, most: float) -> float:
    value = raw[name]
    if type(value) not in (int, float) or not 0 <= value <= most:  # NaN is neither
        raise Misuse(f"need 0 to {most}", field=name)
    return float(value)


def _one_of(raw: Mapping[str, Any], name: str, values: Sequence[str]) -> str:
    value = raw[name]
    if not isinstance(value, str) or value not in values:
        raise Misuse(f"need one of {', '.join(values)}", field=name)
    return value
