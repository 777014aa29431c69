"""Limits on the rows of a tenant: those of its quota, or else of the settings.

All inside the tenant's scope. Raises Problem (limit-reached), which names the limit and the number.
"""

from typing import Any

from django.conf import settings
from django.db.models import QuerySet, Sum

from base.problems import Problem
from catalog.models import Context, Space
from tenants.models import Quota


def require_room_for_space() -> None:
    """The caller holds the tenant's lock, so that two handshakes count one after the other."""
    _require_room("space_limit", Space.objects.all(), Quota.objects.get())


def require_room_for_context() -> None:
    """Inside a transaction, which locks the tenant's quota from here on."""
    quota = Quota.objects.select_for_update().get()
    _require_room("context_limit", Context.objects.all(), quota)


def require_context_blocks(space_id: int, name: str, blocks: int) -> None:
    """Blocks of this context (`context_block_limit`) and of all (`context_blocks_limit`)."""
    quota = Quota.objects.get()
    most = limit_of(quota, "context_block_limit")
    if blocks > most:
        raise _reached(
            "context_block_limit", most, f"The context has {blocks} blocks and the limit is {most}."
        )
    most = settings.ENV.context_blocks_limit
    if blocks * limit_of(quota, "context_limit") <= most:
        return  # even the most contexts, each as long as this one, stay below it
    there = Context.objects.aggregate(all=Sum("blocks"))["all"] or 0
    known = Context.objects.filter(space_id=space_id, name=name).values_list("blocks", flat=True)
    before = known.first() or 0
    if blocks > before and there - before + blocks > most:
        raise _reached(
            "context_blocks_limit",
            most,
            f"All contexts would have {there - before + blocks} blocks and the limit is {most}.",
        )


def limit_of(quota: Quota, name: str) -> int:
    """`name`: space_limit, context_limit or context_block_limit."""
    own: int | None = getattr(quota, name)
    return int(getattr(settings.ENV, name)) if own is None else own


def _require_room(name: str, rows: QuerySet[Any], quota: Quota) -> None:
    most, there = limit_of(quota, name), rows.count()
    if there >= most:
        what = name.removesuffix("_limit") + "s"
        raise _reached(name, most, f"The tenant has {there} {what} and the limit is {most}.")


def _reached(name: str, most: int, detail: str) -> Problem:
    return Problem("limit-reached", f"{name}: {detail}", limit=name, most=most)
