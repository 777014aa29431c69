"""The worker side of one rank: its connection, its staging, its transfers."""

import secrets
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic

from neve import log_events
from neve.engine.canary import Verdict
from neve.engine.link import BOOT_WAIT_S, Link
from neve.engine.loader import BlockLoader
from neve.engine.options import Options
from neve.engine.planner import STEP_WAIT_S
from neve.engine.saver import BlockSaver
from neve.engine.sharding import Share
from neve.engine.staging import Kv, Mark, S, StagingPool
from neve.engine.step import StepPlan
from neve.engine.telemetry import Data, Telemetry
from neve.errors import NeveError
from neve.formats.space import SpaceIdentity

_MOST_TIMED = 64  # steps whose end is awaited; a few, unless the device stands still
# Puts still under way at shutdown get this long.
_DRAIN_S = 5.0


class WorkerSide(Generic[S]):
    """Belongs to the engine's thread. Without a connection every load fails at once."""

    def __init__(
        self,
        kv: Kv[S],
        identity: SpaceIdentity,
        options: Options,
        *,
        engine: str,
        share: Share,
        step_tokens: int,
        weights: Callable[[], bytes] = bytes,
    ) -> None:
        """`step_tokens`: the most that the engine computes in one step. `weights`: names the
        model's weights as they are now."""
        self.identity = identity
        self._step_tokens = step_tokens
        self._kv = kv
        self.defers = kv.defers
        self._options = options
        self.share = share
        node = f"{options.node}/tp{share.seat}" if share.seat else options.node
        self._link = Link.acquire(options, identity, engine=engine, node=node, shards=share.shards)
        self._link.wait_first_attempt(BOOT_WAIT_S)
        self._weights = weights
        self._first_weights = self._read_weights()
        self._weighed = 0
        self._weights_news: tuple[int, bytes] | None = None
        self._saver: BlockSaver[S] | None = None
        self._loader: BlockLoader[S] | None = None
        self._failed_blocks: set[int] = set()
        self._ended: set[str] = set()
        self._unsaved: list[bytes] = []
        self._uncompared: list[bytes] = []
        self._held: set[str] = set()
        self._telemetry = Telemetry()
        self._name = secrets.token_hex(4)
        self._begun: Mark | None = None
        self._timed: deque[tuple[int, Mark, Mark]] = deque(maxlen=_MOST_TIMED)

    def begin_step(self, plan: StepPlan) -> None:
        """Right before the engine computes the step."""
        self._begun = self._kv.mark() if plan.timed is not None else None

    def end_step(self, plan: StepPlan) -> None:
        """Right behind what the engine computes: on a device it need not have begun yet."""
        if plan.timed is not None and self._begun is not None:
            self._timed.append((plan.timed, self._begun, self._kv.mark()))

    def take_timed(self) -> list[tuple[int, float]]:
        """(number, seconds) of measured steps that are over since the last call."""
        over = []
        while self._timed and self._timed[0][2].done():
            number, begun, ended = self._timed.popleft()
            over.append((number, ended.since(begun)))
        return over

    def start_loads(self, plan: StepPlan) -> None:
        """Begins the step's loads; each is reported by `poll_loads` exactly once."""
        for load in plan.loads:
            try:
                if not self._ready():
                    raise NeveError("this rank is not connected")
                assert self._loader is not None
                self._loader.start(load)
            except Exception as error:
                log_events.LOAD_FAILED.log(request=load.request_id, detail=error)
                self._ended.add(load.request_id)
                for block in load.blocks:
                    self._failed_blocks.update(block.written)

    def poll_loads(self, plan: StepPlan) -> set[str]:
        """Requests whose load ended. Waits up to a millisecond while nothing is computed."""
        ended, self._ended = self._ended, set()
        if self._loader is not None:
            wait_s = STEP_WAIT_S if plan.idle and not ended else 0.0
            results = self._loader.poll(wait_s)
            ended |= results.request_ids
            self._failed_blocks |= results.failed_engine_blocks
        return ended

    def take_failed_blocks(self) -> set[int]:
        """Engine blocks that loads ended by the last `poll_loads` did not fill."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def save(self, plan: StepPlan) -> None:
        """Copies the step's finished blocks out of the engine; returns before they are stored."""
        saves = plan.saves[self.share.turn :: self.share.turns]
        if not saves:
            return
        if not self._ready():
            self._unsaved.extend(save.ids[0] for save in saves if not save.stored)
            self._uncompared.extend(save.ids[0] for save in saves if save.stored)
            return
        assert self._saver is not None
        self._saver.save(saves)

    def take_copied(self, plan: StepPlan) -> set[str]:
        """Ended requests that the scheduler holds and whose engine blocks nobody reads any more."""
        self._held.update(plan.held)
        saver = self._saver
        copied = {held for held in self._held if saver is None or not saver.copying(held)}
        self._held -= copied
        return copied

    def fence(self) -> None:
        """Waits for the copies out of engine blocks that are under way: some change hands."""
        self._kv.fence()

    def take_unsaved(self) -> list[bytes]:
        """First-rank ids of blocks that were to be saved and are not."""
        ids, self._unsaved = self._unsaved, []
        return ids + self._saver.take_unsaved() if self._saver is not None else ids

    def take_stored(self) -> list[bytes]:
        """First ids of chunks of which this rank's part was stored since the last call."""
        return self._saver.take_stored() if self._saver is not None else []

    def weigh(self, plan: StepPlan) -> None:
        """Compares the weights with those of the start, once after every reset."""
        if plan.weigh <= self._weighed:
            return
        self._weighed = plan.weigh
        now = self._read_weights()
        self._weights_news = plan.weigh, b"" if now == self._first_weights else now

    def _read_weights(self) -> bytes:
        try:
            return self._weights()
        except Exception:  # then they are like nobody's: after a reset, KV is this engine's alone
            log_events.WEIGHTS_UNREADABLE.log(exc_info=True)
            return secrets.token_bytes(16)

    def take_weights(self) -> dict[str, tuple[int, bytes]]:
        """By this worker's name: the reset's number, and the weights' digest if they are others."""
        news, self._weights_news = self._weights_news, None
        return {self._name: news} if news is not None else {}

    def take_compared(self) -> list[tuple[bytes, Verdict]]:
        """Blocks that were computed and fetched: their first ids, and whether both are the same."""
        unseen, self._uncompared = self._uncompared, []
        found = [(block_id, Verdict.UNKNOWN) for block_id in unseen]
        return found + self._saver.take_compared() if self._saver is not None else found

    def take_telemetry(self) -> Data | None:
        """What is new since the last call, for vLLM's metrics; gauges go by `take_gauges`."""
        self._telemetry.read(self._link.client)
        if self._saver is not None:
            self._telemetry.gauge("saves_in_flight", self._saver.in_flight)
        return self._telemetry.take(gauges=False)

    def take_gauges(self) -> dict[str, dict[str, float]]:
        """This rank's gauges that changed, by its name; the scheduler makes one of all ranks'."""
        news = self._telemetry.take_gauges()
        return {self._name: news} if news else {}

    def close(self) -> None:
        """Waits for the puts under way, up to a bound, and ends the connection."""
        if self._saver is not None and not self._saver.drain(_DRAIN_S):
            log_events.SHUTDOWN_PUTS_LEFT.log()
        self._link.release()

    def _ready(self) -> bool:
        """Whether Neve is connected; makes the transfers when it first is."""
        if self._loader is not None:
            return True
        client = self._link.client
        if client is None:
            return False
        engine_blocks = client.session.chunk_tokens // self.identity.engine_block_tokens
        chunk_bytes = engine_blocks * self._kv.block_bytes

        def pool(budget_bytes: int) -> StagingPool[Any]:
            return StagingPool(
                partial(self._kv.allocate, engine_blocks), budget_bytes // chunk_bytes
            )

        loading = pool(self._options.load_budget_bytes)
        step_chunks = -(-self._step_tokens // client.session.chunk_tokens)
        saving = pool(self._options.save_budget(step_chunks * chunk_bytes // self.share.turns))
        if self._kv.defers:
            threading.Thread(
                target=_fill, args=([loading, saving],), name="neve-pin", daemon=True
            ).start()
        self._saver = BlockSaver(client, self._kv, saving, self.share.columns)
        self._loader = BlockLoader(client, self._kv, loading, self.share.columns)
        return True


def _fill(pools: list[StagingPool[Any]]) -> None:
    """Pins all staging ahead of its use: that takes too long for a step."""
    try:
        for pool in pools:
            pool.fill()
    except Exception:
        log_events.STAGING_SHORT.log(exc_info=True)
