"""The client."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from types import TracebackType

import httpx

from neve.api._async.operations import AsyncEvents, AsyncJobs, AsyncOperations
from neve.api._async.transport import AsyncTransport
from neve.api.endpoint import API, checked_endpoint, checked_key, user_agent
from neve.api.models import Event, Job
from neve.api.records import record_of
from neve.api.retries import pause_s
from neve.api.sse import EventLines
from neve.api.values import Duration, Id, seconds_of
from neve.errors import DeadlineExceeded, NeveError, Unavailable

FINAL_STATES = frozenset({"done", "failed", "cancelled"})
_FIRST_POLL_S = 0.05
_POLL_S = 1.0
_SILENCE_S = 60.0  # the platform says that it is there more often
_TRIES_TO_RESUME = 8


class AsyncJobsAndWait(AsyncJobs):
    """Jobs, and waiting for them."""

    async def wait(
        self,
        id: Id,
        *,
        timeout: Duration | None = None,
        on_progress: Callable[[Job], None] | None = None,
    ) -> Job:
        """Waits until the job is done, failed or cancelled, and returns it.

        `on_progress` gets the job each time its state or progress changed. Raises
        `DeadlineExceeded` after `timeout`: the job goes on.
        """
        deadline = None if timeout is None else monotonic() + seconds_of(timeout)
        before: tuple[str, float] | None = None
        pause = _FIRST_POLL_S
        while True:
            job = await self.get(id)
            if on_progress is not None and (job.state, job.progress) != before:
                on_progress(job)
            before = job.state, job.progress
            # A failed attempt that the platform repeats by itself is not the end.
            if job.state in FINAL_STATES and job.retry_at is None:
                return job
            if deadline is not None and monotonic() >= deadline:
                raise DeadlineExceeded(f"job {id} is still {job.state}: wait longer, or cancel it")
            await asyncio.sleep(pause)
            pause = min(_POLL_S, 2 * pause)


class AsyncEventsAndStream(AsyncEvents):
    """Events, and following them as they come."""

    async def stream(
        self,
        *,
        types: str | Sequence[str] | None = None,
        tenant: str | None = None,
        subject: str | None = None,
        after: int | str | None = None,
        on_lost: Callable[[NeveError], object] | None = None,
    ) -> AsyncIterator[Event]:
        """Yields events as they happen, without end.

        A lost connection is opened again behind the last event, so none is missed. Raises
        `ApiProblem` if the platform refuses, of kind "events-gone" if it does not keep the events
        behind `after` any more; `Unavailable` after several failures in a row.

        Args:
            types: types or patterns, such as "context.*".
            tenant: slug of the tenant.
            subject: id of the object.
            after: `sequence` of an event: later ones come first. None: what happens from now on.
            on_lost: called with each failure, before the next try.
        """
        query = {"types": types, "tenant": tenant, "subject": subject}
        seen = None if after is None else str(after)
        failures = 0
        while True:
            lines = EventLines(seen)
            try:
                async with self._transport.stream(
                    "/events",
                    query=query,
                    accept="text/event-stream",
                    headers={} if seen is None else {"Last-Event-ID": seen},
                    read_timeout_s=_SILENCE_S,
                ) as response:
                    async for line in response.aiter_lines():
                        message = lines.feed(line)
                        if message is not None and message.type == "end":
                            break
                        if message is not None:
                            failures = 0
                            yield record_of(Event, message.data)
            except (Unavailable, DeadlineExceeded) as error:
                if failures >= _TRIES_TO_RESUME:
                    raise
                if on_lost is not None:
                    on_lost(error)
            seen = lines.last_id
            await asyncio.sleep(pause_s(failures, None, 0.5))
            failures += 1


class AsyncNeve(AsyncOperations):
    """The platform's REST API.

    A client may be shared by threads or by tasks. Close it, or use it in a `with` block.
    """

    jobs: AsyncJobsAndWait
    events: AsyncEventsAndStream

    def __init__(
        self,
        endpoint: str,
        api_key: str,
        *,
        timeout_s: float = 30.0,
        retries: int = 5,
        verify: ssl.SSLContext | bool = True,
        http_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`endpoint` is the platform's address, such as https://cache.example.

        Args:
            timeout_s: of connecting and of each read.
            retries: how often a request is repeated, see `AsyncTransport`.
            verify: certificates to trust; making a context takes tens of ms, so share one between
                clients that live shortly.
            http_transport: another transport of httpx.

        Raises:
            Misuse: `endpoint` is no address, or `api_key` cannot be a key.
        """
        self._endpoint = checked_endpoint(endpoint)
        http = httpx.AsyncClient(
            base_url=self._endpoint + API,
            headers={
                "Authorization": f"Bearer {checked_key(api_key)}",
                "User-Agent": user_agent(),
            },
            timeout=timeout_s,
            verify=verify,
            transport=http_transport,
        )
        transport = AsyncTransport(http, retries=retries)
        super().__init__(transport)
        self.jobs = AsyncJobsAndWait(transport)
        self.events = AsyncEventsAndStream(transport)

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._endpoint}>"

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> "AsyncNeve":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
