"""The tools.

Answers are the API's JSON without nulls. Refusals become tool errors that say what to do.
"""

import functools
import importlib.metadata
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from neve.api import ApiProblem, AsyncNeve
from neve.api.models import Job
from neve.api.records import Record
from neve.errors import DeadlineExceeded, NeveError
from neve.mcp.callers import Credentials

P = ParamSpec("P")
T = TypeVar("T")
Json = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]

INSTRUCTIONS = """\
Neve keeps the KV cache of LLM prompts. A context is a named prompt prefix whose KV is stored: a \
request that begins with the same tokens skips their computation. Look up a prompt before a long \
request; pin a context that you need again later; extend or warm one that would be lost. \
`context` takes an id or an exact name."""
READ_ONLY = (
    INSTRUCTIONS + " This server is read-only; its user can start it with --write to change that."
)

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
CHANGES = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
CREATES = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
REMOVES = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_ROWS = 100
_LONGEST_WAIT_S = 300

ContextArg = Annotated[str, Field(description="id or exact name of the context")]
SpaceArg = Annotated[
    int | str | None,
    Field(description="number or name of the space; may be left out if there is only one"),
]
DurationArg = Annotated[str, Field(description="from now on, such as 90s, 30m, 2h, 7d")]
TextArg = Annotated[str | None, Field(description="the prompt as plain text")]
MessagesArg = Annotated[
    Messages | None, Field(description='the prompt as chat messages: [{"role", "content"}]')
]
TokensArg = Annotated[Sequence[int] | None, Field(description="the prompt as token ids")]
ToolsArg = Annotated[
    Messages | None, Field(description="tools of the chat request, if it has any: they are tokens")
]


def make_server(credentials: Credentials, *, can_write: bool = False) -> MCPServer[Any]:
    """A server with the reading tools, and with `can_write` those that change contexts too."""
    server: MCPServer[Any] = MCPServer(
        "neve",
        title="Neve KV cache",
        instructions=INSTRUCTIONS if can_write else READ_ONLY,
        version=importlib.metadata.version("neve"),
        log_level="WARNING",
    )
    tools = Tools(credentials)
    for name, annotations in _READING.items():
        _add(server, getattr(tools, name), annotations)
    if can_write:
        for name, annotations in _WRITING.items():
            _add(server, getattr(tools, name), annotations)
    return server


def _add(
    server: MCPServer[Any], tool: Callable[..., Awaitable[Json]], annotations: ToolAnnotations
) -> None:
    server.add_tool(_told(tool), annotations=annotations, structured_output=True)


def _told(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Turns refusals into tool errors, which the agent reads."""

    @functools.wraps(tool)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(*args, **kwargs)
        except ApiProblem as problem:
            text = f"{problem.detail} (problem: {problem.kind})\nWhat to do: {problem.remedy}"
            if problem.members:
                text += f"\nMore: {problem.members}"
            raise ToolError(text) from problem
        except NeveError as error:
            raise ToolError(str(error)) from error

    return call


class Tools:
    """One method per tool; its docstring is what the agent reads."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def _client(self, ctx: Context[Any, Any]) -> AbstractAsyncContextManager[AsyncNeve]:
        return self._credentials.client(ctx.headers)

    async def whoami(self, ctx: Context[Any, Any]) -> Json:
        """Tells whose key is used: its role, scopes, tenant and end."""
        async with self._client(ctx) as neve:
            return _row(await neve.me())

    async def list_spaces(self, ctx: Context[Any, Any]) -> Json:
        """Lists spaces. A space is one model with one KV layout; contexts of different spaces
        share nothing."""
        async with self._client(ctx) as neve:
            return _page(await neve.spaces.list(page_size=_MOST_ROWS).page())

    async def list_contexts(
        self,
        ctx: Context[Any, Any],
        search: Annotated[str | None, Field(description="part of the name")] = None,
        label: Annotated[str | None, Field(description="exact label")] = None,
        labels: Annotated[
            Mapping[str, str] | None, Field(description='key-value labels: {"team": "blue"}')
        ] = None,
        space: SpaceArg = None,
        state: Annotated[
            str | None, Field(description="expected, stored, partial, lost or expired")
        ] = None,
        pinned: Annotated[bool | None, Field(description="only pinned, or only unpinned")] = None,
        limit: Annotated[int, Field(ge=1, le=_MOST_ROWS)] = 20,
        cursor: Annotated[str | None, Field(description="next_cursor of the last answer")] = None,
    ) -> Json:
        """Lists contexts, newest first. All filters must match."""
        async with self._client(ctx) as neve:
            number = None if space is None else await _space(neve, space)
            listed = neve.contexts.list(
                search=search, label=label, labels=labels, space=number, state=state,
                pinned=pinned, page_size=limit,
            )  # fmt: skip
            return _page(await listed.page(cursor))

    async def get_context(self, ctx: Context[Any, Any], context: ContextArg) -> Json:
        """Shows a context: its tokens, pins, state, and how much is hot (in memory), cold (in
        object storage) or lost."""
        async with self._client(ctx) as neve:
            return _row(await neve.contexts.get(await _context(neve, context)))

    async def residency(self, ctx: Context[Any, Any], context: ContextArg) -> Json:
        """Shows where a context's tokens are, in runs from its beginning. A request can use
        `usable_tokens` of it; lost tokens come back with `warm`, or with the next request."""
        async with self._client(ctx) as neve:
            return _row(await neve.contexts.residency(await _context(neve, context)))

    async def lookup(
        self,
        ctx: Context[Any, Any],
        space: SpaceArg = None,
        text: TextArg = None,
        messages: MessagesArg = None,
        tokens: TokensArg = None,
        tools: ToolsArg = None,
    ) -> Json:
        """Tells how many tokens of a prompt are stored, which contexts share its beginning, and
        whether loading is faster than computing. Give exactly one of text, messages and tokens.
        Text and messages need a registered engine of the space."""
        async with self._client(ctx) as neve:
            return _row(
                await neve.lookup(
                    space=await _space(neve, space),
                    text=text, messages=messages, tokens=tokens, tools=tools,
                )
            )  # fmt: skip

    async def diff(
        self,
        ctx: Context[Any, Any],
        context: ContextArg,
        other: Annotated[str, Field(description="id or exact name of the other context")],
    ) -> Json:
        """Compares two contexts: how long a beginning they share, and where they part."""
        async with self._client(ctx) as neve:
            first, second = await _context(neve, context), await _context(neve, other)
            return _row(await neve.contexts.diff(first, with_=second))

    async def get_job(self, ctx: Context[Any, Any], job: str) -> Json:
        """Shows a job, such as one that `warm` started: state, progress, error."""
        async with self._client(ctx) as neve:
            return _row(await neve.jobs.get(job))

    async def create_context(
        self,
        ctx: Context[Any, Any],
        name: Annotated[str, Field(description="how people and agents call it", max_length=200)],
        space: SpaceArg = None,
        text: TextArg = None,
        messages: MessagesArg = None,
        tokens: TokensArg = None,
        tools: ToolsArg = None,
        label: Annotated[str | None, Field(description="what retention rules match")] = None,
        labels: Annotated[Mapping[str, str] | None, Field(description="key-value labels")] = None,
    ) -> Json:
        """Names a prompt prefix, before any request. Stores no KV: `warm` does, or the next
        request that begins so. Give exactly one of text, messages and tokens."""
        async with self._client(ctx) as neve:
            return _row(
                await neve.contexts.create(
                    space=await _space(neve, space), name=name, text=text, messages=messages,
                    tokens=tokens, tools=tools, label=label, labels=labels,
                )
            )  # fmt: skip

    async def pin(
        self,
        ctx: Context[Any, Any],
        context: ContextArg,
        duration: DurationArg,
        reason: Annotated[str | None, Field(description="for people who see the pin")] = None,
        tier: Annotated[
            str | None, Field(description="any (default), hot: in memory, or durable")
        ] = None,
    ) -> Json:
        """Keeps a context's stored blocks until then, under any pressure. Your new pin replaces
        your old one. Pins count against the tenant's quota: pin what you need, as long as you need
        it."""
        async with self._client(ctx) as neve:
            id_ = await _context(neve, context)
            return _row(await neve.contexts.pin(id_, for_=duration, reason=reason, tier=tier))

    async def unpin(self, ctx: Context[Any, Any], context: ContextArg) -> Json:
        """Ends your pin on a context; pins of others stay."""
        async with self._client(ctx) as neve:
            return _row(await neve.contexts.unpin(await _context(neve, context)))

    async def extend(
        self,
        ctx: Context[Any, Any],
        context: ContextArg,
        duration: DurationArg,
    ) -> Json:
        """Lets a context's blocks live at least so long. Unlike a pin it does not hold them
        against the quota: they may still be evicted."""
        async with self._client(ctx) as neve:
            return _row(await neve.contexts.extend(await _context(neve, context), for_=duration))

    async def warm(
        self,
        ctx: Context[Any, Any],
        context: ContextArg,
        wait_s: Annotated[
            int,
            Field(ge=0, le=_LONGEST_WAIT_S, description="how long to wait for the end; 0: not"),
        ] = 60,
    ) -> Json:
        """Has an engine compute and store what a context lacks. Costs GPU time. Returns the job;
        if its state is not done, failed or cancelled yet, ask get_job later."""
        async with self._client(ctx) as neve:
            job = await neve.contexts.warm(await _context(neve, context))
            return _row(await _finished(neve, job, wait_s, ctx))

    async def expire(
        self,
        ctx: Context[Any, Any],
        context: ContextArg,
        dry_run: Annotated[
            bool, Field(description="true: only count what would be removed; false: remove")
        ] = True,
    ) -> Json:
        """Removes a context's blocks for good, except those that other contexts share. Counts
        first: call it with dry_run=true, then with dry_run=false if that is what you want."""
        async with self._client(ctx) as neve:
            return _row(await neve.contexts.expire(await _context(neve, context), dry_run=dry_run))


_READING = dict.fromkeys(
    (
        "whoami", "list_spaces", "list_contexts", "get_context", "residency", "lookup", "diff",
        "get_job",
    ),
    READS,
)  # fmt: skip
_WRITING = {
    "create_context": CREATES,
    "pin": CHANGES,
    "unpin": CHANGES,
    "extend": CHANGES,
    "warm": CREATES,
    "expire": REMOVES,
}


async def _finished(neve: AsyncNeve, job: Job, wait_s: int, ctx: Context[Any, Any]) -> Job:
    """The job at its end, or as it is after `wait_s`."""
    seen: list[Job] = [job]
    try:
        return await neve.jobs.wait(job.id, timeout=f"{wait_s}s", on_progress=seen.append)
    except DeadlineExceeded:
        return seen[-1]


async def _context(neve: AsyncNeve, given: str) -> str:
    """The id of a context that is named by id or by name."""
    given = given.strip()
    if _UUID.fullmatch(given.lower()):
        return given.lower()
    page = await neve.contexts.list(name=given, page_size=10).page()
    if not page.items:
        raise ToolError(f"No context is named {given!r}. Find it with list_contexts(search=...).")
    if len(page.items) > 1:
        found = ", ".join(f"{one.id} (space {one.space})" for one in page.items)
        raise ToolError(f"Several contexts are named {given!r}; give one id: {found}")
    return page.items[0].id


async def _space(neve: AsyncNeve, given: int | str | None) -> int:
    """The number of a space that is named by number, by name, or as the only one."""
    if isinstance(given, int):
        return given
    if given is not None and given.isdecimal():
        return int(given)
    page = await neve.spaces.list(name=given, page_size=_MOST_ROWS).page()
    if len(page.items) == 1:
        return page.items[0].id
    if given is not None and not page.items:
        raise ToolError(f"No space is named {given!r}: see list_spaces.")
    found = ", ".join(f"{one.id} ({one.name})" for one in page.items) or "none"
    raise ToolError(f"Name the space by its number. Spaces: {found}")


def _row(record: Record) -> Json:
    row: Json = _without_nulls(record.raw)
    return row


def _page(page: Any) -> Json:
    rows = [_row(record) for record in page.items]
    more = {"next_cursor": page.next_cursor} if page.next_cursor else {}
    return {"results": rows, **more}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value
