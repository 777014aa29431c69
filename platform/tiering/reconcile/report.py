"""Report of a run of reconcile: counts for its Job row, and errors that did not stop it."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from base import log_events


@dataclass
class Report:
    """`looked_at`: blocks, keys, objects, segments. `repaired`: by what was wrong."""

    looked_at: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    errors: list[Exception] = field(default_factory=list)
    ends_at: float = float("inf")  # time.monotonic() at which the run ends; the next one goes on

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self.ends_at

    def found(self, what: str, count: int = 1) -> None:
        """Counts a repair; a count of 0 is not noted."""
        if count:
            self.repaired[what] += count

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """An error inside is noted and does not stop the code after it."""
        try:
            yield
        except Exception as error:
            log_events.RECONCILE_FAILED.log(at=what, exc_info=True)
            self.errors.append(error)

    def raise_errors(self) -> None:
        if self.errors:
            several = ExceptionGroup("in several places", self.errors)
            raise self.errors[0] if len(self.errors) == 1 else several

    def as_dict(self) -> dict[str, dict[str, int]]:
        return {"looked_at": dict(self.looked_at), "repaired": dict(self.repaired)}
