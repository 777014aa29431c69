"""A node's samples of block accesses, collected between heartbeats. See `neve.formats.samples`.

The platform chooses rate and key; without them nothing is collected. If a batch would be too large,
its rate is halved: it holds fewer ids then, but all accesses of these.
"""

import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from neve.formats.ids import ID_BYTES
from neve.formats.samples import (
    KEY_BYTES,
    LOWEST_RATE_LOG,
    MOST_AGE_S,
    MOST_BATCH_BYTES,
    Batch,
    IdSampler,
    SampledRequest,
    Totals,
)

# Upper bounds of encoded bytes: of a request's numbers and a block's place, of an id, of the rest.
_REQUEST_BYTES: Final = 13
_BLOCK_BYTES: Final = 12
_FIXED_BYTES: Final = 600
# A batch that grows beyond these is dropped whole: the platform does not answer.
_MOST_REQUESTS: Final = 100_000
_MOST_WAIT_S: Final = MOST_AGE_S / 2


@dataclass(frozen=True)
class SampleTerms:
    """The platform's answer: sample ids at the rate 2^-`rate_log` by `key`."""

    rate_log: int
    key: bytes

    @classmethod
    def from_answer(cls, answer: object) -> Self | None:
        """None: do not sample; also if the answer cannot be read, or comes from an older platform
        that has none."""
        if not isinstance(answer, Mapping):
            return None
        rate_log, key = answer.get("rate_log"), answer.get("key")
        if type(rate_log) is not int or not 0 <= rate_log <= LOWEST_RATE_LOG:
            return None
        try:
            found = bytes.fromhex(key) if isinstance(key, str) else b""
        except ValueError:
            return None
        return cls(rate_log, found) if len(found) == KEY_BYTES else None


@dataclass(frozen=True)
class Taken:
    """A batch that waits for its delivery. Times of its requests are of `clock`."""

    batch: Batch
    clock: Callable[[], float]

    def encode(self) -> str | None:
        """For sending now, in Base64; None: it is too old."""
        now_s = self.clock()
        requests = [replace(each, at_s=each.at_s - now_s) for each in self.batch.requests]
        if requests and requests[0].at_s < -MOST_AGE_S:
            return None
        return b64encode(replace(self.batch, requests=requests).encode()).decode()


class Sampling:
    """Thread-safe. Times are of `clock`, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._terms: SampleTerms | None = None
        self._sampler: IdSampler | None = None
        self._begin()

    @property
    def is_on(self) -> bool:
        return self._sampler is not None

    def set_terms(self, terms: SampleTerms | None) -> None:
        """Applies from the next request on. With another key, what is there is dropped."""
        with self._lock:
            if terms == self._terms:
                return
            before, self._terms = self._terms, terms
            is_other = terms is None or before is None or terms.key != before.key
            if is_other:
                self._begin()
            self._set_rate()

    def add(self, ids: bytes) -> None:
        """Notes a request that asks for the blocks `ids`, ID_BYTES each, in order."""
        sampler = self._sampler
        if sampler is None or not ids:
            return
        chosen = sampler.choose(ids)
        with self._lock:
            if sampler is not self._sampler:  # the terms or the rate changed meanwhile
                if self._sampler is None:
                    return
                chosen = self._sampler.choose(ids)
            now_s = self._clock()
            if now_s - self._since_s > _MOST_WAIT_S or len(self._lengths) >= _MOST_REQUESTS:
                self._begin()  # the platform is away
                self._set_rate()
            asked = len(ids) // ID_BYTES
            self._lengths.append(asked)
            if not chosen:
                return
            places, published = zip(*chosen, strict=True)
            self._requests.append(SampledRequest(now_s, asked, places, published))
            self._bytes += _REQUEST_BYTES + _BLOCK_BYTES * len(published)
            while self._bytes > MOST_BATCH_BYTES - _FIXED_BYTES:
                self._halve()

    def take(self) -> "Taken | None":
        """Returns the batch since the last one; None if there is nothing."""
        with self._lock:
            if not self._lengths:
                return None
            taken = Taken(
                Batch(
                    self._rate_log, self._requests, Totals.of(self._lengths), dropped=self._dropped
                ),
                self._clock,
            )
            self._begin()
            self._set_rate()
        return taken

    def _begin(self) -> None:
        self._requests: list[SampledRequest] = []
        self._lengths: list[int] = []
        self._bytes = 0
        self._dropped = 0
        self._rate_log = 0 if self._terms is None else self._terms.rate_log
        self._since_s = self._clock()

    def _set_rate(self) -> None:
        """Samples at the terms' rate, or at the lower one of the batch under way."""
        if self._terms is None:
            self._sampler = None
            return
        lowest = max(self._rate_log, self._terms.rate_log)
        if lowest != self._rate_log:
            self._lower(lowest)
        if self._sampler is None or (self._sampler.key, self._sampler.rate_log) != (
            self._terms.key, lowest,
        ):  # fmt: skip
            self._sampler = IdSampler(self._terms.key, rate_log=lowest)

    def _halve(self) -> None:
        assert self._terms is not None
        if self._rate_log == LOWEST_RATE_LOG:
            self._dropped += len(self._requests)
            self._requests, self._bytes = [], 0
            return
        self._lower(self._rate_log + 1)
        self._sampler = IdSampler(self._terms.key, rate_log=self._rate_log)

    def _lower(self, rate_log: int) -> None:
        self._rate_log = rate_log
        kept = (each.within(rate_log) for each in self._requests)
        self._requests = [each for each in kept if each is not None]
        blocks = sum(len(each.ids) for each in self._requests)
        self._bytes = _REQUEST_BYTES * len(self._requests) + _BLOCK_BYTES * blocks
