"""After a reset: are the weights still those of the start? Then KV is shared as before.

Weights may be changed in place, which no fingerprint shows. So after a reset nothing is found or
stored until every worker compared its weights. If some changed, their digests name an epoch: KV is
shared only with engines of the same epoch.
"""

from collections.abc import Mapping
from hashlib import blake2b

from neve import log_events


class Resets:
    """Belongs to the scheduler's thread. `ranks`: workers that compare their weights."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._digests: dict[str, bytes] = {}
        # For `StepPlan.weights_check`: grows by one with every reset.
        self.number = 0
        # Salts block ids; b"" for the weights of the start, None until all workers compared.
        self.epoch: bytes | None = b""

    def begin(self) -> None:
        """The engine was reset."""
        self.number += 1
        self.epoch = None
        self._digests.clear()

    def note(self, weights: Mapping[str, tuple[int, bytes]]) -> bool:
        """Workers' answers: `WorkerReport.weights`. True when these complete the reset."""
        for worker, (number, digest) in weights.items():
            if number == self.number:
                self._digests[worker] = digest
        if self.epoch is not None or len(self._digests) < self._ranks:
            return False
        digests = sorted(self._digests.values())
        self.epoch = blake2b(b"".join(digests), digest_size=16).digest() if any(digests) else b""
        log_events.RESET_DONE.log(weights="changed" if self.epoch else "same")
        return True
