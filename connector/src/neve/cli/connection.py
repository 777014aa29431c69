"""A connection to the platform's REST API for one command, with the options that all of them take.

Stands on `neve.api` (the extra `neve[api]`), which is imported when a command runs: `neve --help`
loads neither httpx nor rich.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, wraps
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neve.cli.config import Credentials, find_credentials
from neve.cli.exits import COMMAND, JSON_MODE
from neve.cli.output import Output
from neve.errors import Misuse

if TYPE_CHECKING:
    from neve.api import Neve
    from neve.api._sync.transport import Transport

RETRIES = 2  # a person waits; scripts see exit code 6 and repeat
QUICK_S = 1.5
_PAGE = 100  # rows of a request; the platform allows as many

F = TypeVar("F", bound=Callable[..., Any])


class Connection:
    """`out` writes what the command has to say. The other attributes talk to the platform; they
    raise `neve.api.ApiProblem`, `Unavailable` and `DeadlineExceeded`."""

    def __init__(self, profile: str | None, endpoint: str | None, *, as_json: bool) -> None:
        self.out = Output(as_json=as_json)
        self._profile, self._endpoint = profile, endpoint

    @cached_property
    def credentials(self) -> Credentials:
        return find_credentials(self._profile, self._endpoint)

    @cached_property
    def api(self) -> "Neve":
        return open_api(self.credentials.endpoint, self.credentials.api_key)

    def quick_api(self) -> "Neve":
        """For completion in a shell: it answers soon or not at all."""
        self.__dict__["api"] = open_api(
            self.credentials.endpoint, self.credentials.api_key, timeout_s=QUICK_S, retries=0
        )
        return self.api

    @property
    def transport(self) -> "Transport":
        """Of `neve.api`: retries, idempotency keys, problems. Paths are sent as they are, so that
        this command also shows what a newer platform adds."""
        return self.api._transport

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        keep_null: bool = False,
    ) -> Any:
        """The answer's JSON; None for an empty answer. `path` begins behind /api/v1. Members of
        `body` that are None are left out, unless `keep_null`."""
        sent = body
        if body is not None and not keep_null:
            sent = {name: value for name, value in body.items() if value is not None}
        return self.transport.call_for_json(method, path, query=query, body=sent)

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def page(self, path: str, query: Mapping[str, Any], cursor: str | None = None) -> Any:
        """One page of a list: {next_cursor, results, total…}."""
        given = dict(query) if cursor is None else {**query, "cursor": cursor}
        return self.get(path, **given)

    def rows(
        self, path: str, query: Mapping[str, Any] | None = None, *, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of a list, page by page; `limit`: at most so many."""
        wanted = {**(query or {}), "page_size": min(limit or _PAGE, _PAGE)}

        def every() -> Iterator[dict[str, Any]]:
            cursor = None
            while True:
                page = self.page(path, wanted, cursor)
                yield from page["results"]
                cursor = next_cursor(page)
                if cursor is None:
                    return

        return islice(every(), limit)

    def show(self, document: Any, as_people_read: Callable[[], None]) -> None:
        """The answer as JSON with --json, else as `as_people_read` writes it."""
        if self.out.as_json:
            self.out.document(document)
        else:
            as_people_read()

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """The lines of an export, without their ends."""
        return iter(self.transport.lines(path, query=query))

    def close(self) -> None:
        if "api" in self.__dict__:
            self.api.close()


def next_cursor(page: Mapping[str, Any]) -> str | None:
    """Never an address: the key goes to the endpoint alone, whatever an answer says."""
    from urllib.parse import parse_qs, urlsplit

    if isinstance(page.get("next_cursor"), str):
        return str(page["next_cursor"])
    following = page.get("next")
    if not isinstance(following, str):
        return None
    return next(iter(parse_qs(urlsplit(following).query).get("cursor", ())), None)


def open_api(endpoint: str, api_key: str, **options: Any) -> "Neve":
    require_extra()
    from neve.api import Neve

    return Neve(endpoint, api_key, **{"retries": RETRIES, **options})


def require_extra() -> None:
    """Raises `Misuse` unless the packages of the extra are there."""
    missing = [name for name in ("httpx", "rich") if find_spec(name) is None]
    if missing:
        raise Misuse(f"this command needs {' and '.join(missing)}: run `pip install 'neve[api]'`")


def platform_options(command: F) -> F:
    """Adds --profile, --endpoint and --json to a command; calls it with a `Connection`."""

    @wraps(command)
    def run(
        *args: Any, profile: str | None, endpoint: str | None, as_json: bool, **rest: Any
    ) -> Any:
        context = click.get_current_context()
        context.meta.update({JSON_MODE: as_json, COMMAND: context.command})
        require_extra()
        platform = Connection(profile, endpoint, as_json=as_json)
        try:
            return command(platform, *args, **rest)
        finally:
            platform.close()

    for option in (
        click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text."),
        click.option("--endpoint", metavar="URL", help="Of the platform.  [env NEVE_ENDPOINT]"),
        click.option("--profile", metavar="NAME", help="Of `neve login`.  [env NEVE_PROFILE]"),
    ):
        run = option(run)
    return run  # type: ignore[return-value]
