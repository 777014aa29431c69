"""The scope of a page: whose numbers it shows, of which part, and of which time. All of it stands
in the address, so a link shows another person the same, as far as they may see it.
"""

import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.http import Http404, HttpRequest
from django.urls import get_script_prefix, reverse

from catalog.models import Space
from catalog.usage import KEPT
from catalog.windows import (
    DEFAULT_RANGE,
    RANGES,
    Window,
    range_named,
    window_between,
    window_of,
)
from tenants.models import Tenant
from tenants.principal import Principal, rows_of

ALL = "all"  # the picker's value for all tenants that the person sees
SCOPE = ("tenant", "space", "node", "label", "range", "from", "to", "zone")
ZONE_COOKIE = "neve_zone"  # set by shell.js: the browser's zone
MOST_SPACES = 100  # of the picker
_MOST_TEXT = 200  # characters of node and label
_NO_LIST = ("page", "format", "since", "tables")  # what a change of scope starts anew


@dataclass(frozen=True)
class Scope:
    """`tenants`: what to filter by, with `rows_of(Model, scope.tenants)`; that of `space`, if one
    is chosen. `node`, `label`: "" is all. `query`: the scope as it stands in the address.
    """

    person: Principal
    tenant: str  # slug, or ALL
    tenants: tuple[Tenant, ...]
    space: Space | None
    node: str
    label: str  # "key:value", or a bare label
    window: Window
    zone: ZoneInfo
    query: dict[str, str] = field(default_factory=dict)
    browser_zone: str = ""
    others: tuple[tuple[str, str], ...] = ()  # the page's own parameters, which the form keeps
    path: str = "/"

    def link(self, name: str, *args: Any, **changes: object) -> str:
        """The address of a page in this scope. `changes`: parameters; None drops one. A name that
        Python keeps for itself ends with an underscore: `from_`."""
        return self._address(_path_of(get_script_prefix(), name, args), self.query, changes)

    def here(self, **changes: object) -> str:
        """The address of this page, with its own parameters, as `link` changes them."""
        return self._address(self.path, {**dict(self.others), **self.query}, changes)

    @property
    def is_live(self) -> bool:
        """Whether the window ends now, so that numbers still change."""
        return "from" not in self.query

    @property
    def range_name(self) -> str:
        return self.window.range.name

    @property
    def ranges(self) -> list[tuple[str, str]]:
        """Name and address of each range, on this page."""
        return [(name, self.here(range=name, from_=None, to=None)) for name in RANGES]

    @cached_property
    def spaces(self) -> Sequence[Space]:
        """The picker's spaces, those that were made last first."""
        tenants = self.person.tenants if self.tenant == ALL else self.tenants
        rows = rows_of(Space, tenants).select_related("tenant")
        found = list(rows.only("name", "tenant__slug")[:MOST_SPACES])
        if self.space is not None and self.space not in found:
            found.append(self.space)
        return found

    @property
    def zones(self) -> list[str]:
        """What the picker offers without JavaScript: UTC, the browser's zone and the chosen one."""
        return sorted({"UTC", self.zone.key, self.browser_zone or "UTC"})

    def fields(self, *without: str) -> list[tuple[str, str]]:
        """Hidden fields of a form that sets the parameters `without` and keeps all others."""
        known = (*self.query.items(), *self.others)
        return [(name, value) for name, value in known if name not in without]

    @property
    def start(self) -> datetime:
        return datetime.fromtimestamp(self.window.start_ts, self.zone)

    @property
    def end(self) -> datetime:
        end_s = min(self.window.end_ts, self.window.now_s)
        return datetime.fromtimestamp(end_s, self.zone)

    def _address(self, path: str, query: dict[str, str], changes: dict[str, object]) -> str:
        query = dict(query)
        for key, value in changes.items():
            name = key.rstrip("_")
            query.pop(name, None)
            if value is not None and value != "":
                query[name] = str(value)
        return f"{path}?{urlencode(query)}" if query else path


@lru_cache(4096)
def _path_of(prefix: str, name: str, args: tuple[Any, ...]) -> str:
    """Kept, since a page has dozens of links. `prefix`: of all addresses, in which they end."""
    return reverse(f"dashboard:{name}", args=args)


def scope_of(request: HttpRequest, person: Principal) -> Scope:
    """The scope of a request, read once. Raises Http404 for a zone, Problem (not-found, malformed)
    for anything else that does not exist for this person."""
    found: Scope | None = getattr(request, "neve_scope", None)
    if found is None or found.person is not person:
        found = _read(request, person)
        request.neve_scope = found  # type: ignore[attr-defined]
    return found


def _read(request: HttpRequest, person: Principal) -> Scope:
    asked = {name: request.GET.get(name, "").strip() for name in SCOPE}
    slug = asked["tenant"] or ALL
    tenants = person.tenants if slug == ALL else (person.tenant(slug),)
    space = _space(person, asked["space"])
    if space is not None:
        if slug in (ALL, space.tenant.slug):
            tenants = (space.tenant,)
        else:  # the tenant was changed in the form: its spaces are others
            space, asked["space"] = None, ""
    zone = _zone(request, asked["zone"])
    window = _window(asked, zone)
    query = {name: value for name, value in asked.items() if value}
    if slug == ALL:
        query.pop("tenant", None)
    if "from" in query:
        query.pop("range", None)
        # Unix seconds: the same instant for a reader in another zone.
        query["from"] = str(window.start_ts)
        if "to" in query:
            query["to"] = str(window.end_ts)
    others = tuple(
        (name, str(value))
        for name, value in request.GET.items()
        if value and name not in SCOPE and name not in _NO_LIST
    )
    return Scope(
        person=person,
        tenant=slug,
        tenants=tenants,
        space=space,
        node=_text(asked["node"]),
        label=_text(asked["label"]),
        window=window,
        zone=zone,
        query=query,
        browser_zone=_cookie_zone(request),
        others=others,
        path=request.path,
    )


def _space(person: Principal, asked: str) -> Space | None:
    if not asked:
        return None
    if not (asked.isascii() and asked.isdigit() and len(asked) < 19):
        raise Http404("space is a number")
    space = person.rows(Space).select_related("tenant").filter(pk=int(asked)).first()
    if space is None:
        raise Http404("there is no such space")
    return space


def _text(asked: str) -> str:
    if len(asked) > _MOST_TEXT or "\0" in asked:
        raise Http404("too long, or not text")
    return asked


def _window(asked: dict[str, str], zone: ZoneInfo) -> Window:
    now_s = datetime.now(UTC).timestamp()
    if not asked["from"]:
        if asked["to"]:
            asked["to"] = ""  # of a form whose other field was emptied
        return window_of(range_named(asked["range"] or DEFAULT_RANGE), now_s)
    end_s = _instant(asked["to"], zone) if asked["to"] else now_s
    kept_s = {resolution: kept.total_seconds() for resolution, kept in KEPT.items()}
    kept_s[3_600] = float("inf")
    return window_between(_instant(asked["from"], zone), end_s, now_s, kept_s=kept_s)


def _instant(asked: str, zone: ZoneInfo) -> float:
    """Seconds since 1970 of a number of them, or of ISO 8601; without an offset in the zone."""
    if asked.isascii() and asked.isdigit() and len(asked) < 12:
        return float(asked)
    try:
        at = datetime.fromisoformat(asked)
        return (at if at.tzinfo else at.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        raise Http404("from and to are ISO 8601, or seconds since 1970") from None


@cache
def _known_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def _zone(request: HttpRequest, asked: str) -> ZoneInfo:
    if not asked:
        return ZoneInfo(_cookie_zone(request) or "UTC")
    if asked not in _known_zones():
        raise Http404("there is no such zone")
    return ZoneInfo(asked)


def is_zone(name: str) -> bool:
    return name in _known_zones()


def _cookie_zone(request: HttpRequest) -> str:
    """What the browser said, or "" if it said nothing that is a zone."""
    name = request.COOKIES.get(ZONE_COOKIE, "")
    return name if name in _known_zones() else ""
