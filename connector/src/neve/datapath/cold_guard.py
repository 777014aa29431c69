"""Whether a cold load asks an S3 store, or the platform for addresses: a breaker for each, so that
one store that stops keeps no block of another from being read.
"""

import time
from collections.abc import Callable
from typing import Final

from neve import log_events
from neve._core import Breaker
from neve.datapath.cold import reason_of
from neve.datapath.hedging import ReadStop
from neve.errors import DeadlineExceeded, MissReason, NeveError

# A range that times out within less than this does not count against S3: its turn came late.
FAIR_S: Final = 0.05

Outcomes = list[MissReason | None]


class ColdGuard:
    """For any thread."""

    def __init__(self) -> None:
        self._breaker = Breaker()
        self._reason = MissReason.BREAKER  # why blocks are missed while it is open

    def ask(
        self,
        blocks: int,
        deadline: float,
        stop: ReadStop,
        read: Callable[[], tuple[Outcomes, NeveError | None]],
    ) -> Outcomes:
        """What `read` says of so many blocks; while the breaker is open, why they are missed."""
        if not self._breaker.allow():
            return [self._reason] * blocks
        given_s = deadline - time.monotonic()
        outcomes, trouble = read()
        late = isinstance(trouble, DeadlineExceeded)
        if (trouble is None and not stop.stopped) or (late and None in outcomes):
            self._breaker.succeed()  # the bytes that came in time were right
            self._reason = MissReason.BREAKER
        elif stop.stopped or (late and given_s < FAIR_S):
            self._breaker.forgive()
        else:
            self._note(trouble)
        return outcomes

    def _note(self, trouble: NeveError | None) -> None:
        """Logs the first of its kind, and the breaker's opening; not each load that fails."""
        reason = reason_of(trouble)
        is_news = self._breaker.fail() or reason not in (MissReason.BREAKER, self._reason)
        self._reason = reason
        if is_news:
            log_events.COLD_TROUBLE.log(reason=reason, detail=trouble)
