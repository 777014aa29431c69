"""Neve as one tenant's key sees it: what is stored of a prompt, engines, the price of a GPU.

A request waits for `lookup` no longer than the deadline. A later answer still counts for what the
request saved, but as slow for the breaker: after `_MOST_FAILURES` in a row nothing is asked for a
second, later for up to half a minute. Engines and prices are read in the background.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import blake2b
from time import monotonic
from typing import Any, Final

from neve import log_events
from neve.api import ApiProblem, AsyncNeve, models
from neve.errors import NeveError
from neve.gateway.prompts import Prompt

DEADLINE_S: Final = 0.1
# An answer later than this is not waited for by anybody.
LATE_S: Final = 5.0
# At a time: the platform takes eight of a tenant that need an engine's tokeniser.
MOST_LOOKUPS: Final = 4
_MOST_FAILURES: Final = 3
_FIRST_REST_S: Final = 1.0
_MOST_REST_S: Final = 30.0
_FACTS_S: Final = 30.0  # engines and prices are read this often, while requests come
_NO_ENGINE_S: Final = 10.0


@dataclass(frozen=True)
class Found:
    """What Neve holds of a prompt, in tokens, whole chunks; see `POST /api/v1/lookup`.

    `usable`: a request can go on behind so many; `usable_hot`: without reading S3. `load_s`,
    `compute_s`: to load these, or to compute them; None until a node has measured it. `tail`: after
    the last whole chunk, where nothing can be stored.
    """

    tokens: int
    usable: int
    usable_hot: int
    load_s: float | None = None
    compute_s: float | None = None
    tail: int = 0

    def with_held(self, tokens: int, share: float) -> "Found":
        """And what a node probably has in its own cache: `share` of `tokens`."""
        return replace(self, usable=max(self.usable, int(tokens * share)))


@dataclass(frozen=True)
class Engine:
    """A server that the tenant's nodes announced, or the tenant registered.

    `url`: without /v1. `space`: the first one that it serves.
    """

    url: str
    model: str
    space: int
    gpus: int = 1


class Lookup:
    """A look-up under way, or done."""

    def __init__(self, task: "asyncio.Task[Found | None]") -> None:
        self.task = task

    @property
    def found(self) -> Found | None:
        """None as long as there is no answer, and if it failed."""
        if not self.task.done() or self.task.cancelled():
            return None
        return self.task.result()


class Store:
    """Belongs to one event loop. All tenants of a process may share one `verify`.

    Raises Misuse if endpoint or key cannot be right.
    """

    def __init__(
        self,
        endpoint: str,
        api_key: str,
        *,
        deadline_s: float = DEADLINE_S,
        most_lookups: int = MOST_LOOKUPS,
        verify: ssl.SSLContext | bool = True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`api_key`: of role team, with the scope `read`. `deadline_s`: of one look-up, as a
        request sees it. `most_lookups`: at a time; more than the default if all ask by tokens."""
        self._neve = AsyncNeve(
            endpoint,
            api_key,
            timeout_s=LATE_S,
            retries=0,
            verify=verify,
        )
        self.key = blake2b(api_key.encode(), person=b"neve.gateway", digest_size=32).digest()
        self.engines: tuple[Engine, ...] = ()
        self.gpu_second: tuple[Decimal, str] | None = None  # price and currency
        self._deadline_s, self._most_lookups = deadline_s, most_lookups
        self._clock = clock
        self._failures = 0
        self._closed_until = 0.0  # nothing is asked before
        self._spaces_without_engine: dict[int, float] = {}
        self._gpus: dict[int, int] = {}  # TP × PP of spaces
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lookups = 0
        self._facts_due = 0.0
        self._facts: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Store {self._neve.endpoint}>"

    @property
    def is_open(self) -> bool:
        """False while the breaker lets nothing be asked."""
        return self._clock() >= self._closed_until

    def gpus_of(self, space: int | None) -> int:
        """Of an engine of the space: the fewest, 1 if none is known."""
        return min((each.gpus for each in self.engines if each.space == space), default=1)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._neve.close()

    async def look_up(self, space: int, prompt: Prompt, *, waits: bool = True) -> Lookup | None:
        """Asks what is stored, and waits for at most the deadline. None: it was not asked, as the
        breaker is open, too many are under way, or `lookup` cannot take such a prompt.

        `waits`: False if the answer may come later (see `answered`).
        """
        query = prompt.query
        now = self._clock()
        if (
            query is None
            or not self.is_open
            or self._lookups >= self._most_lookups
            or ("tokens" not in query and self._spaces_without_engine.get(space, 0.0) > now)
        ):
            return None
        self._lookups += 1
        lookup = Lookup(self._start(self._look_up(space, query)))
        if waits:
            await self.answered(lookup)
        return lookup

    async def answered(self, lookup: Lookup) -> None:
        """Waits for the answer, for at most the deadline."""
        await asyncio.wait({lookup.task}, timeout=self._deadline_s)
        if not lookup.task.done():
            self._fail(f"lookup takes longer than {self._deadline_s:g} s")

    async def speeds_of(self, space: int) -> models.BreakEven:
        """What nodes of the space measured. Raises `NeveError`."""
        return (await self._neve.spaces.get(space)).break_even

    async def facts(self) -> None:
        """Reads engines and prices, if that is due; waits for the first reading alone, for at
        most a second."""
        if self._clock() >= self._facts_due and self._facts is None:
            is_first = self._facts_due == 0.0
            self._facts_due = self._clock() + _FACTS_S
            self._facts = self._start(self._read_facts())
            if is_first:
                await asyncio.wait({self._facts}, timeout=1.0)

    def _start(self, what: Any) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _look_up(self, space: int, query: dict[str, Any]) -> Found | None:
        begun = self._clock()
        try:
            answer = await asyncio.wait_for(self._neve.lookup(space=space, **query), LATE_S)
            found = _found_in(answer)
        except ApiProblem as problem:
            self._refused(problem, space)
            return None
        except (NeveError, TimeoutError) as error:
            self._fail(str(error) or "no answer")
            return None
        except Exception:  # an answer of an unknown form, a prompt that is no JSON
            log_events.GATEWAY_BROKEN.log(step="lookup", exc_info=True)
            self._fail("a bug")
            return None
        finally:
            self._lookups -= 1
        if self._clock() - begun <= self._deadline_s:
            self._failures = 0
        return found

    def _refused(self, problem: ApiProblem, space: int) -> None:
        if problem.kind == "no-engine":  # only token ids can be looked up now
            self._spaces_without_engine[space] = self._clock() + _NO_ENGINE_S
        elif problem.status == 429:
            self._rest(problem.retry_after_s or _FIRST_REST_S, str(problem))
        elif problem.status in (401, 403):
            self._rest(_MOST_REST_S, str(problem))
        elif problem.status >= 500:
            self._fail(str(problem))
        # Else this prompt cannot be looked up: its engine will tell the client.

    def _fail(self, detail: str) -> None:
        self._failures += 1
        more = self._failures - _MOST_FAILURES
        if more >= 0 and self.is_open:
            self._rest(min(_MOST_REST_S, _FIRST_REST_S * 2 ** min(more, 10)), detail)

    def _rest(self, seconds: float, detail: str) -> None:
        if self.is_open:
            log_events.GATEWAY_RESTS.log(seconds=f"{seconds:g}", detail=detail)
        self._closed_until = max(self._closed_until, self._clock() + seconds)

    async def _read_facts(self) -> None:
        try:
            prices = await self._neve.prices.get()
            self.gpu_second = Decimal(prices.gpu_hour) / 3600, prices.currency
            engines = [each async for each in self._neve.engines.list() if each.spaces]
            for space in {each.spaces[0] for each in engines if each.gpus is None} - {*self._gpus}:
                identity = (await self._neve.spaces.get(space)).identity
                self._gpus[space] = identity.get("tp_size", 1) * identity.get("pp_size", 1)
            self.engines = tuple(
                Engine(each.base_url, each.model, first, each.gpus or self._gpus[first])
                for each in engines
                if (first := each.spaces[0])
            )
        except Exception as error:  # as of the last reading
            log_events.GATEWAY_FACTS_OLD.log(detail=str(error))
        finally:
            self._facts = None


def _found_in(answer: models.LookupResult) -> Found:
    """Raises TypeError or AttributeError for an answer of another form."""
    cost = answer.cost
    counts = answer.tokens, answer.usable_tokens, answer.usable_hot_tokens, answer.tail_tokens
    if not all(type(each) is int and each >= 0 for each in counts):
        raise TypeError("lookup: counts of tokens need to be numbers")
    return Found(
        tokens=answer.tokens,
        usable=answer.usable_tokens,
        usable_hot=answer.usable_hot_tokens,
        load_s=None if cost.load_s is None else float(cost.load_s),
        compute_s=None if cost.compute_s is None else float(cost.compute_s),
        tail=answer.tail_tokens,
    )
