"""One page of a list."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs, urlsplit

from neve.api.records import Record, record_of
from neve.errors import Unavailable

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Page(Generic[R]):
    """`total` is None unless it was asked for with `total=True`."""

    items: tuple[R, ...]
    next_cursor: str | None
    previous_cursor: str | None
    total: int | None


def page_of(answer: Any, into: type[R]) -> Page[R]:
    """Raises `Unavailable` if `answer` is no page."""
    if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
        raise Unavailable("the answer is not the API's: check the endpoint")
    return Page(
        items=tuple(record_of(into, row) for row in answer["results"]),
        next_cursor=_cursor(answer, "next"),
        previous_cursor=_cursor(answer, "previous"),
        total=answer.get("total"),
    )


def _cursor(answer: Mapping[str, Any], which: str) -> str | None:
    """The cursor, also out of the page's address. That address is never followed, so that no
    answer leads the key to another host."""
    cursor = answer.get(f"{which}_cursor")
    if cursor is None and isinstance(answer.get(which), str):
        cursor = next(iter(parse_qs(urlsplit(answer[which]).query).get("cursor", ())), None)
    return cursor if isinstance(cursor, str) else None
