"""Worker side of the canary: fetches blocks that the engine computed too, and compares them."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic

from neve import log_events
from neve.datapath.client import Client, Transfer
from neve.engine.canary import Verdict
from neve.engine.contract import Kv, S
from neve.engine.staging import StagingPool, payloads
from neve.engine.step import BlockSave, Place

# No request waits for a comparison.
FETCH_DEADLINE_S: Final = 10.0


class Comparer(Generic[S]):
    """Compares one rank's `columns`. `compare` may be called by any thread, and never waits."""

    def __init__(
        self, client: Client, kv: Kv[S], pool: StagingPool[S], columns: Sequence[int]
    ) -> None:
        self._client = client
        self._kv = kv
        self._pool = pool
        self._columns = columns
        self._verdicts: deque[tuple[bytes, Verdict]] = deque()
        self._differences: deque[tuple[bytes, Place]] = deque()
        self._thread = ThreadPoolExecutor(1, "neve-canary")

    def compare(self, save: BlockSave, computed: S) -> None:
        """`computed`: the engine's own KV of this block; goes back to the pool at the end."""
        pieces = [computed]
        try:
            pieces += self._pool.take(1)
            if len(pieces) < 2:
                raise BufferError("no staging is left")
            transfer = self._client.get_many(
                [save.ids[column] for column in self._columns],
                payloads(pieces[1:], len(self._columns)),
                locations=[save.stored[column] for column in self._columns],
                deadline_s=FETCH_DEADLINE_S,
            )
        except Exception as error:
            log_events.CANARY_SKIPPED.log(detail=error)
            self._end(save, pieces, Verdict.UNKNOWN)
            return
        transfer.add_done_callback(
            lambda done: self._thread.submit(self._compare, done, save, pieces)
        )

    def skip(self, save: BlockSave) -> None:
        """The block could not be copied out of the engine."""
        self._verdicts.append((save.ids[0], Verdict.UNKNOWN))

    def take(self) -> list[tuple[bytes, Verdict]]:
        """First ids and verdicts of comparisons that ended since the last call."""
        return [self._verdicts.popleft() for _ in range(len(self._verdicts))]

    def take_differences(self) -> dict[bytes, Place]:
        """By first id, where blocks differ that were compared to the bit. Call `take` first."""
        return dict(self._differences.popleft() for _ in range(len(self._differences)))

    def _compare(self, transfer: Transfer, save: BlockSave, pieces: list[S]) -> None:
        """On the canary's thread."""
        verdict = Verdict.UNKNOWN
        try:
            is_fetched = transfer.wait(0.0) == [None] * len(self._columns)
            if is_fetched and save.bits:
                verdict = self._compare_bits(save, pieces)
            elif is_fetched:
                difference = self._kv.compare(*pieces)
                verdict = Verdict.SAME if difference is None else Verdict.OTHER
                if difference is not None:
                    log_events.CANARY_DIFFERS.log(
                        first_token=save.chunk * save.tokens,
                        end_token=(save.chunk + 1) * save.tokens,
                        difference=difference,
                    )
        except Exception:
            log_events.CANARY_BROKEN.log(exc_info=True)
        self._end(save, pieces, verdict)

    def _compare_bits(self, save: BlockSave, pieces: list[S]) -> Verdict:
        found = self._kv.compare_bits(*pieces)
        if found is None:
            return Verdict.SAME
        # The engine blocks of a window are the chunk's last ones.
        size = self._client.session.identity.engine_block_tokens
        left = len(save.engine_blocks) - found.engine_block
        first = (save.chunk + 1) * save.tokens - left * size
        self._differences.append((save.ids[0], Place(found.layer, first, first + size)))
        return Verdict.NEAR if found.is_rounding else Verdict.OTHER

    def _end(self, save: BlockSave, pieces: list[S], verdict: Verdict) -> None:
        self._pool.give_back(pieces)
        if verdict is not Verdict.UNKNOWN:
            other = int(verdict is Verdict.OTHER and not save.bits)
            self._client.stats.count(compared_blocks=1, differing_blocks=other)
        self._verdicts.append((save.ids[0], verdict))
