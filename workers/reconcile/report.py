"""What a run of reconcile did: counts for its Job row."""

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """`looked_at`: blocks, keys, objects, segments. `repaired`: by what was wrong."""

    looked_at: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    ends_at: float = float("inf")  # time.monotonic(); then the next run goes on

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self.ends_at

    def found(self, what: str, count: int = 1) -> None:
        """Nothing is noted of what is not wrong."""
        if count:
            self.repaired[what] += count

    def as_dict(self) -> dict[str, dict[str, int]]:
        return {"looked_at": dict(self.looked_at), "repaired": dict(self.repaired)}
