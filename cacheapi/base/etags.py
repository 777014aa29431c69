"""Entity tags: `If-Match` on changes of one object, `If-None-Match` on reads of it (RFC 9110).

A tag is `"<row>"`, or `"<row>-<rest>"` where an answer has more members than the row, such as the
residency of a context. `If-Match` compares `<row>` alone: a moving residency is no change of the
context. `If-None-Match` compares the whole tag.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import blake2b
from typing import Any

from rest_framework import serializers
from rest_framework.permissions import SAFE_METHODS
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from base.preconditions import Expected, changed, expecting
from cacheapi.base.access import ScopesOfView
from cacheapi.base.queries import malformed

# Weak tags too: a proxy that compresses answers makes them weak.
_TAG = r'(?:W/)?"[!#-~]*"'
LIST = rf"^(\*|{_TAG}( *, *{_TAG})*)$".replace("(?:", "(")
_LIST = re.compile(LIST, re.ASCII)

Handler = Callable[..., Response]


class Tagged(ScopesOfView, GenericViewSet[Any]):
    """For views of rows: a resource has entity tags by being one."""

    serializer_class: Any
    # Members that move without a change by a caller: no part of `<row>`.
    moving: tuple[str, ...] = ("last_used_at", "last_heartbeat_at", "seen_at", "checked_at")
    tagged: tuple[str, ...] = ("retrieve",)  # reads that answer with a tag
    unconditional: tuple[str, ...] = ()  # actions that change nothing which a caller decides

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        method = (request.method or "").lower()
        if (handler := getattr(self, method, None)) is not None:
            setattr(self, method, self._conditional(handler))
        super().initial(request, *args, **kwargs)

    def _conditional(self, handler: Handler) -> Handler:
        def answer(request: Request, *args: Any, **kwargs: Any) -> Response:
            if request.method in SAFE_METHODS:
                response = handler(request, *args, **kwargs)
                return self._unless_known(request, response)
            given = request.headers.get("If-Match") if self.is_conditional() else None
            if given is None or (tags := _tags(given)) is None:
                response = handler(request, *args, **kwargs)
            else:
                expected = self._expected(tags)
                with expecting(expected):
                    response = handler(request, *args, **kwargs)
            if response.status_code in (200, 201) and self._holds_row(response.data):
                response["ETag"] = f'"{self._row_tag(response.data)}"'
            return response

        return answer

    def is_conditional(self) -> bool:
        """Whether the operation under way takes `If-Match`."""
        return bool(self.detail) and self.action not in (*self.reads, *self.unconditional)

    def _expected(self, tags: frozenset[str]) -> Expected:
        """Raises Problem (precondition-failed) if the row differs already."""
        row = self.get_object()

        def is_current() -> bool:
            fresh = self.get_queryset().select_for_update(of=("self",)).get(pk=row.pk)
            return self._row_tag(self.serializer_class(fresh).data) in tags

        if not self._is_as_seen(row, tags):
            raise changed()
        return Expected(type(row), row.pk, is_current)

    def _is_as_seen(self, row: Any, tags: frozenset[str]) -> bool:
        """Before the transaction: spares the work that `is_current` would refuse."""
        return self._row_tag(self.serializer_class(row).data) in tags

    def _unless_known(self, request: Request, response: Response) -> Response:
        if self.action not in self.tagged or response.status_code != 200:
            return response
        tag = self._row_tag(response.data) if self._holds_row(response.data) else ""
        if not tag or set(response.data) != self._stable_names():
            tag = f"{tag}-{_digest(response.data)}"
        response["ETag"] = f'"{tag}"'
        known = request.headers.get("If-None-Match", "")
        if known.strip() == "*" or f'"{tag}"' in re.findall(r'"[!#-~]*"', known):
            return Response(status=304, headers={"ETag": response["ETag"]})
        return response

    def _row_tag(self, data: Mapping[str, Any]) -> str:
        return _digest({name: data[name] for name in sorted(self._stable_names())})

    def _holds_row(self, data: Any) -> bool:
        return isinstance(data, Mapping) and self._stable_names() <= set(data)

    def _stable_names(self) -> frozenset[str]:
        return _names(self.serializer_class) - frozenset(self.moving)


def _tags(given: str) -> frozenset[str] | None:
    """`<row>` of each tag; None: any. Raises Problem (malformed)."""
    if _LIST.fullmatch(given.strip()) is None:
        raise malformed("If-Match", 'need * or entity tags such as "5f2c…", as ETag gave them')
    if given.strip() == "*":
        return None
    return frozenset(tag[1:-1].partition("-")[0] for tag in re.findall(r'"[!#-~]*"', given))


@cache
def _names(serializer: type[serializers.Serializer[Any]]) -> frozenset[str]:
    return frozenset(serializer().fields)


def _digest(data: Any) -> str:
    return blake2b(JSONRenderer().render(data), digest_size=8).hexdigest()
