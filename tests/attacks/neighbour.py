"""A node that minds its own business, and writes down what it felt."""

import time
from collections import Counter
from threading import Event, Thread
from typing import Self

from neve.datapath.client import Client
from support.chains import ENGINE, IDENTITY, Chain

WAIT_S = 10.0
BLOCKS = 4


class Neighbour:
    """Context manager. Stores new blocks and loads them, one batch after the other.

    `served`, `refused`: blocks. `longest_s`: of one batch. `last_trouble_s`: since the start.
    """

    def __init__(self, url: str, key: str) -> None:
        self._client = Client.connect(
            url, key, IDENTITY, node="neighbour", engine=ENGINE, promote=False
        )
        self._stop, self._thread = Event(), Thread(target=self._run, daemon=True)
        self.started = time.monotonic()
        self.served = self.refused = 0
        self.why: Counter[str] = Counter()
        self.longest_s = 0.0
        self.last_trouble_s: float | None = None

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        seed = int(self.started * 1000) % (1 << 31)
        while not self._stop.is_set():
            seed += 1
            chain = Chain(self._client, BLOCKS, seed=seed)
            begun = time.monotonic()
            said = chain.put(WAIT_S)
            if not any(said):
                match = self._client.match(chain.ids, deadline_s=WAIT_S)
                said = chain.get(match, WAIT_S) or [match.miss]
            took_s = time.monotonic() - begun
            bad = [str(reason) for reason in said if reason is not None]
            self.served += len(said) - len(bad)
            self.refused += len(bad)
            self.why.update(bad)
            self.longest_s = max(self.longest_s, took_s)
            if bad or took_s > 1:
                self.last_trouble_s = time.monotonic() - self.started
            self._stop.wait(0.02)
