"""Live answers: a page's own address, asked again with the header `Neve-Live`, is computed at most
once a second for everybody who sees the same.

Who sees the same: people of one role over the same tenants (`Viewer`), who ask the same address
with the same cookies `neve_…`. The view of a shared answer gets no identity: a page that asks for
the person's id, name or session raises `Personal`, and each person gets an answer of their own.
Forms in a shared answer have no CSRF token; the page that receives it puts its own in.

Must not be here: decisions on what a page shows.
"""

import asyncio
import contextvars
import copy
import gzip
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from hashlib import blake2b
from importlib import import_module
from time import monotonic, time
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from tenants.models import ApiKey
from tenants.principal import Principal, principal_of_person
from tenants.second_factor import may_enter

HEADER = "Neve-Live"  # Unix ms of the newest hint that the page has heard, 0 without one
OPEN = "Neve-Open"  # the page has a table open that is closed at first: send it, too
COMPUTED = "Neve-Computed"  # of an answer: Unix ms at which its computation began
AGE = "Neve-Age"  # of an answer: ms since then
CSRF_PLACE = "of-the-page"  # in place of a CSRF token
EVERY_S = 1.0  # between two computations of one answer, or PACE times what one took
PACE = 2  # so that pages leave a busy machine to nodes
OPERATORS_WAITING = 16  # their pages are dozens, and they see all tenants in one lane
PATIENCE_S = 2.0  # most that a request waits for its turn; then it gets what there is
CHECK_S = 5.0  # how long a session that was found valid is not looked up again
MOST_ANSWERS = 512
MOST_SESSIONS = 10_000
GZIP_LEVEL = 4
COOKIES = "neve_"  # prefix of the cookies that pages may read

Viewer = tuple[Any, ...]
Compute = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


class Personal(Exception):
    """A page needs to know whose answer it makes: the answer must not be shared."""


class _Nobody:
    """In place of the user and the session of a request whose answer is shared."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise Personal(name)


class _Unnamed(Principal):
    """A Principal whose rights count, not its identity."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("id", "name", "key_id"):
            raise Personal(name)
        return super().__getattribute__(name)


def is_asked(request: HttpRequest) -> bool:
    """Whether a page asks for its live parts, not a person for the page."""
    return request.method == "GET" and HEADER in request.headers


def wants_tables(request: HttpRequest) -> bool:
    """Whether to render the tables that are closed at first."""
    return not is_asked(request) or OPEN in request.headers


def viewer_of(person: Principal) -> Viewer:
    """Everything that decides what a person sees, but not who they are."""
    return tuple(
        getattr(person, each.name)
        for each in fields(Principal)
        if each.name not in ("id", "name", "key_id")
    )


def is_operators(viewer: Viewer) -> bool:
    return bool(viewer[0] == ApiKey.Role.OPERATOR)


def respond(
    request: HttpRequest,
    person: Principal,
    view: Callable[[HttpRequest, Principal], HttpResponseBase],
) -> HttpResponseBase:
    """The answer to a live request, marked with its viewer if others may get it, too."""
    known = {each.name: getattr(person, each.name) for each in fields(Principal)}
    try:
        response = view(_unnamed(request), _Unnamed(**known))
    except Personal:
        return view(request, person)
    if response.status_code == 200 and not response.streaming:
        response.neve_viewer = viewer_of(person)  # type: ignore[attr-defined]
    return response


def _unnamed(request: HttpRequest) -> HttpRequest:
    unnamed = copy.copy(request)
    unnamed.resolver_match = request.resolver_match  # which copies leave out
    unnamed.user = unnamed.session = unnamed.auser = _Nobody()  # type: ignore[assignment]
    unnamed.COOKIES = _shared_cookies(request)
    unnamed.csp_nonce = ""  # type: ignore[attr-defined]
    unnamed._messages = []  # type: ignore[attr-defined]  # what was said to one person
    return unnamed


def _shared_cookies(request: HttpRequest) -> dict[str, str]:
    return {name: it for name, it in request.COOKIES.items() if name.startswith(COOKIES)}


@dataclass(frozen=True)
class Held:
    """One computed answer, also compressed. It holds no secret, so compression leaks none."""

    viewer: Viewer
    at_ms: int
    type: str
    body: bytes
    zipped: bytes
    etag: str

    @classmethod
    def of(cls, response: HttpResponseBase, at_ms: int) -> "Held | None":
        """None for an answer that belongs to one person."""
        viewer = getattr(response, "neve_viewer", None)
        if viewer is None or not isinstance(response, HttpResponse):
            return None
        body, type_ = response.content, response["Content-Type"]
        etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
        return cls(viewer, at_ms, type_, body, gzip.compress(body, GZIP_LEVEL, mtime=0), etag)

    def response(self, request: HttpRequest) -> HttpResponseBase:
        answer: HttpResponseBase
        if request.headers.get("If-None-Match") == self.etag:
            answer = HttpResponseNotModified()
        elif "gzip" in request.headers.get("Accept-Encoding", ""):
            answer = HttpResponse(self.zipped, content_type=self.type)
            answer["Content-Encoding"] = "gzip"
        else:
            answer = HttpResponse(self.body, content_type=self.type)
        answer["ETag"] = self.etag
        answer[COMPUTED] = str(self.at_ms)
        answer[AGE] = str(int(time() * 1000) - self.at_ms)
        answer["Cache-Control"] = "no-store"
        answer["X-Content-Type-Options"] = "nosniff"
        patch_vary_headers(answer, ("Cookie", "Accept-Encoding", HEADER))
        return answer


@dataclass
class _Slot:
    """An answer, and the computation that is under way. `is_personal_till`: monotonic seconds."""

    held: Held | None = None
    running: "asyncio.Future[None] | None" = None
    began: float = float("-inf")
    every_s: float = EVERY_S
    is_personal_till: float = 0.0


class Answers:
    """The shared answers of a web process. Used by its event loop only.

    `in_pool`: runs a function in a thread that may use the database. `at_once`: computations, one
    for each process that makes them: two would only take Python's lock from each other.
    """

    def __init__(self, in_pool: Callable[..., Awaitable[Any]], *, at_once: int = 1) -> None:
        self.in_pool = in_pool
        self.turns = asyncio.Semaphore(at_once)
        # One of each kind of viewer waits for a turn: however many pages a tenant's people ask
        # for, others wait for one of them, and for some of the operators.
        self.lanes: WeakValueDictionary[Viewer, asyncio.Semaphore] = WeakValueDictionary()
        self.slots: OrderedDict[tuple[Any, ...], _Slot] = OrderedDict()
        self.viewers: OrderedDict[str, tuple[float, Viewer]] = OrderedDict()

    async def answer(
        self, request: HttpRequest, compute: Compute, otherwise: Compute
    ) -> HttpResponseBase:
        """A shared answer, made by `compute`, if there can be one; else that of `otherwise`."""
        session = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
        if not session or not is_asked(request):
            return await otherwise(request)
        viewer = await self.viewer(session)
        if viewer is None:
            return await otherwise(request)
        cookies = tuple(sorted(_shared_cookies(request).items()))
        place = request.headers.get("Host"), request.get_full_path(), OPEN in request.headers
        slot = self._slot((viewer, *place, cookies))
        since_ms, patient_till = _since(request), monotonic() + PATIENCE_S
        while (now := monotonic()) >= slot.is_personal_till:
            wait_s, patience_s = slot.began + slot.every_s - now, patient_till - now
            if slot.held and wait_s > 0 and (slot.held.at_ms >= since_ms or wait_s > patience_s):
                return slot.held.response(request)
            if slot.held and patience_s <= 0:
                return slot.held.response(request)
            if slot.running is not None:
                limit_s = max(patience_s, 0.0) if slot.held else None
                await asyncio.wait([slot.running], timeout=limit_s)
            elif wait_s > 0:
                await asyncio.sleep(wait_s)  # computed before the hint, a moment ago
            else:
                return await self._compute(slot, viewer, request, compute)
        return await otherwise(request)

    async def _compute(
        self,
        slot: _Slot,
        viewer: Viewer,
        request: HttpRequest,
        compute: Compute,
    ) -> HttpResponseBase:
        slot.running = asyncio.get_running_loop().create_future()
        waiting = OPERATORS_WAITING if is_operators(viewer) else 1
        lane = self.lanes.setdefault(viewer, asyncio.Semaphore(waiting))
        try:
            async with lane, self.turns:
                began, at_ms = monotonic(), int(time() * 1000)
                response = await compute(request)
        finally:  # also when the browser left, which cancels this
            slot.running.set_result(None)
            slot.running = None
        held = Held.of(response, at_ms)
        if held is None or held.viewer != viewer:
            # Of one person, or refused: for a while nobody waits for another's answer.
            slot.is_personal_till = monotonic() + CHECK_S
            return response
        slot.held, slot.began = held, began
        slot.every_s = max(EVERY_S, PACE * (monotonic() - began))
        return held.response(request)

    def _slot(self, key: tuple[Any, ...]) -> _Slot:
        slot = self.slots.setdefault(key, _Slot())
        self.slots.move_to_end(key)
        while len(self.slots) > MOST_ANSWERS:
            self.slots.popitem(last=False)
        return slot

    async def viewer(self, session: str) -> Viewer | None:
        """Of a browser session; None: nobody whose answers may be shared."""
        checked, viewer = self.viewers.get(session, (float("-inf"), ()))
        if monotonic() - checked < CHECK_S:
            return viewer
        self.viewers.pop(session, None)
        found: Viewer | None = await self.in_pool(_viewer_of_session, session)
        if found is not None:
            self.viewers[session] = (monotonic(), found)
            while len(self.viewers) > MOST_SESSIONS:
                self.viewers.popitem(last=False)
        return found


def _since(request: HttpRequest) -> int:
    """A hint's time. Later than now is now: clocks of two hosts differ."""
    asked = request.headers[HEADER]
    return min(int(asked), int(time() * 1000)) if asked.isascii() and asked.isdigit() else 0


def _viewer_of_session(key: str) -> Viewer | None:
    """The viewer of a browser session; None for one that nobody is signed in with, or that owes a
    second factor: it gets what the middleware says, which a shared answer does not pass."""
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(key)

    def read() -> Viewer | None:
        user = get_user(request)
        if not user.is_authenticated or not may_enter(user, request.session):
            return None
        return viewer_of(principal_of_person(user))

    return contextvars.copy_context().run(read)  # log lines of other requests name nobody
