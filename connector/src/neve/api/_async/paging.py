"""Lists, page by page."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, TypeVar

from neve.api._async.transport import AsyncTransport
from neve.api.page import Page, page_of
from neve.api.records import Record

R = TypeVar("R", bound=Record)


class AsyncPages(Generic[R]):
    """A list. Iterating it asks for page after page, each when its first row is needed."""

    def __init__(
        self, transport: AsyncTransport, path: str, query: Mapping[str, Any], into: type[R]
    ) -> None:
        self._transport = transport
        self._path = path
        self._query = dict(query)
        self._into = into

    def __repr__(self) -> str:
        return f"<list of {self._into.__name__} from {self._path}>"

    async def page(self, cursor: str | None = None) -> Page[R]:
        """The page at `cursor`, the first without one."""
        query = self._query if cursor is None else {**self._query, "cursor": cursor}
        return page_of(
            await self._transport.call_for_json("GET", self._path, query=query), self._into
        )

    async def pages(self) -> AsyncIterator[Page[R]]:
        """All pages, from the first."""
        page = await self.page()
        yield page
        while page.next_cursor is not None:
            page = await self.page(page.next_cursor)
            yield page

    async def first(self) -> R | None:
        """The first row, or None."""
        page = await self.page()
        return page.items[0] if page.items else None

    async def __aiter__(self) -> AsyncIterator[R]:
        async for page in self.pages():
            for item in page.items:
                yield item
