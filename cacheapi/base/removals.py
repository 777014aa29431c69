"""Which blocks of a space left, as both APIs answer it."""

from typing import Any

from rest_framework import serializers

from cacheapi.base.queries import malformed
from neve.errors import Misuse
from storage import hot
from storage.hot_removals import MOST_CURSOR, Removals, marks_of, removals_behind

CURSOR = {
    "type": "string",
    "minLength": 1,
    "maxLength": MOST_CURSOR,
    "pattern": "^[A-Za-z0-9_-]+$",
}


class RemovalsSerializer(serializers.Serializer[Any]):
    """Blocks that left both tiers, and were not stored again meanwhile."""

    removed = serializers.ListField(
        child=serializers.RegexField("^[0-9a-f]{32}$"), help_text="ids of blocks"
    )
    cursor = serializers.CharField(help_text="`after` of the next request")
    reset = serializers.BooleanField(
        help_text="true: removals behind `after` are not all known any more; forget what you know"
    )


def require_cursor(name: str, after: str | None) -> None:
    """Raises Problem (malformed) for a text that is no cursor."""
    try:
        if after is not None:
            marks_of(after)
    except Misuse as error:
        raise malformed(name, error.detail) from error


def page(tenant_id: int, space_id: int, after: str | None) -> dict[str, Any]:
    """`after`: see `require_cursor`. Raises Problem (hot-tier-unavailable)."""
    with hot.required():
        found = removals_behind(tenant_id, space_id, after)
    answer = {"removed": ids_of(found), "cursor": found.cursor, "reset": found.is_reset}
    return RemovalsSerializer(answer).data


def ids_of(found: Removals) -> list[str]:
    return [id_.hex() for id_ in found.ids]
