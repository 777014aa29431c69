"""The plan of each engine step: its loads, its saves, and which blocks wait to be freed.

Belongs to the scheduler's thread.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from neve import log_events
from neve.engine.events import RouterEvents
from neve.engine.load_policy import LoadPolicy
from neve.engine.lookups import Lookups
from neve.engine.resets import Resets
from neve.engine.saves import Saves
from neve.engine.step import BlockSave, LoadPlan, OfferedState, Scheduled, StepPlan
from neve.engine.table import RequestTable


class Steps:
    """`defers`: workers copy behind the step, so ended requests' blocks may still be read."""

    def __init__(
        self,
        table: RequestTable,
        lookups: Lookups,
        saves: Saves,
        policy: LoadPolicy,
        events: RouterEvents,
        resets: Resets,
        *,
        defers: bool,
    ) -> None:
        self._table = table
        self._lookups = lookups
        self._saves = saves
        self._policy = policy
        self._events = events
        self._resets = resets
        self._defers = defers
        self._steps = 0
        self._loads: list[LoadPlan] = []
        self._saving: set[str] = set()  # requests whose blocks workers may still copy
        self._delayed_frees: list[str] = []
        # Blocks that workers were told to copy, and that may change hands while requests run.
        self._copied_from: set[int] = set()

    def add_load(self, load: LoadPlan) -> None:
        """The load goes out with the next step."""
        self._loads.append(load)

    def delay_free(self, request_id: str) -> bool:
        """Whether an ended request's blocks must stay allocated until workers copied them. If so,
        the next plan says it."""
        if request_id not in self._saving:
            return False
        self._saving.discard(request_id)
        self._delayed_frees.append(request_id)
        return True

    def build(
        self,
        scheduled: Iterable[Scheduled],
        *,
        computes: bool,
        preempted: Collection[str] = (),
        encodes_media: bool = False,
        tables: Callable[[str], Sequence[Sequence[int]] | None] | None = None,
        states: Mapping[str, Sequence[OfferedState]] | None = None,
    ) -> StepPlan:
        """See `Scheduling.build_step`. Loads go out even if planning the saves fails."""
        step = StepPlan(
            loads=self._loads,
            delayed_frees=self._delayed_frees,
            idle=not computes,
            fences=bool(preempted),
            weights_check=self._resets.number,
        )
        self._loads, self._delayed_frees = [], []
        # Preempted requests no longer own their blocks. Drop our hold: if such a request is loaded
        # again and aborted, the engine frees its blocks itself, and a second free would crash it.
        self._saving.difference_update(preempted)
        for request_id in preempted:  # found before it ran: out of date
            if request_id in self._table.requests:
                self._table.requests[request_id].lookup = None
        try:
            self._plan_saves(
                step, scheduled, encodes_media=encodes_media, tables=tables, states=states or {}
            )
        except Exception:
            step.fences = True  # which blocks change hands is not known
            log_events.SAVE_UNPLANNED.log(exc_info=True)
        self._events.note_lost(self._table.stored.take_lost())
        self._lookups.end_step(idle=step.idle)
        return step

    def _plan_saves(
        self,
        step: StepPlan,
        scheduled: Iterable[Scheduled],
        *,
        encodes_media: bool,
        tables: Callable[[str], Sequence[Sequence[int]] | None] | None,
        states: Mapping[str, Sequence[OfferedState]],
    ) -> None:
        """Runs over every request of every step; most have nothing to save."""
        self._steps += 1
        due_at = self._saves.due_at
        prefills: list[tuple[int, int]] = []
        due: list[tuple[str, int]] = []
        # Blocks of windows and states change hands while their request runs.
        given: set[int] = set()
        watches = self._defers and self._table.is_split
        for load in step.loads if watches else ():
            given.update(block for each in load.blocks for block in each.written)
        for request_id, start, end, blocks, replaces, drafts in scheduled:
            if tables is None and (replaces or blocks):
                self._table.put_blocks(request_id, blocks, replaces=replaces)
            if end - start > 1 and not drafts:
                prefills.append((start, end))
            if watches:
                given.update(block for group in blocks for block in group)
            if end >= due_at.get(request_id, end) or request_id in states:
                due.append((request_id, end))
        step.handed_on = frozenset(given & self._copied_from)
        self._copied_from -= step.handed_on
        # Encoding media may take most of a step's time, so such steps don't show prefill speed.
        timeable = prefills and not encodes_media
        if timeable and self._policy.begin_step(self._steps, prefills):
            step.timed = self._steps
        for request_id, end in due:
            held = tables(request_id) if tables else self._table.engine_blocks[request_id]
            saves: list[BlockSave] = []
            if held is not None:
                saves = self._saves.plan(request_id, end, held, states.get(request_id, ()))
            if saves and self._defers:
                self._saving.add(request_id)
            step.saves += saves
            for save in saves:
                if watches and self._table.groups[save.group].frees:
                    self._copied_from.update(save.engine_blocks)
                if not (save.stored or save.group):
                    per_chunk = save.tokens // self._table.engine_block_tokens
                    self._events.expect(self._table.requests[request_id], save, per_chunk)
