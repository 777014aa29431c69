"""Hot quotas are promises of memory: their sum fits the servers, unless an operator overcommits.

With a sum that does not fit, one tenant's blocks take room that was promised to another.
"""

from dataclasses import dataclass
from typing import Any

from valkey.exceptions import ValkeyError

from base import log_events
from base.problems import Problem
from storage import hot
from storage.hot_servers import memory
from tenants.models import Tenant

LEAST_DEFAULT_BYTES = 16 << 20  # with less, a tenant needs an explicit quota


@dataclass(frozen=True)
class Room:
    """`capacity_bytes` of blocks fit; `promised_bytes` are quotas of the other active tenants."""

    capacity_bytes: int
    promised_bytes: int

    @property
    def left_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.promised_bytes)


def read_room(*, without: int | None = None) -> Room | None:
    """`without` one tenant's quota. None: no limit, or no server answers."""
    try:
        capacity = hot.capacity_bytes()
    except ValkeyError as error:  # decisions do not wait for a Valkey that is down
        log_events.HOT_ROOM_UNKNOWN.log(error=error)
        return None
    return None if capacity is None else Room(capacity, promised_bytes(without=without))


def promised_bytes(*, without: int | None = None) -> int:
    """The sum of active tenants' hot quotas, perhaps `without` one of them."""
    rows = Tenant.objects.filter(is_active=True)
    if without is not None:
        rows = rows.exclude(pk=without)
    # Summed here: the database's sum of integers may overflow, and then raises.
    return sum(quota or 0 for quota in rows.values_list("quota__hot_bytes", flat=True))


def scarce_room_bytes() -> int | None:
    """Free room for blocks, in bytes, if quotas promise more than there is; else None.

    Raises valkey's errors.
    """
    used = memory()
    if not used.max_bytes or promised_bytes() * hot.MEMORY_PER_BYTE <= used.max_bytes:
        return None
    return int(max(0, used.max_bytes - used.used_bytes) / hot.MEMORY_PER_BYTE)


def require_room(
    hot_bytes: int, *, tenant_id: int | None, present_bytes: int, overcommit: bool
) -> dict[str, Any]:
    """Checks that a tenant may have a hot quota of `hot_bytes` instead of `present_bytes`.

    Inside a transaction. Returns the facts of an overcommitment for the audit, else {}.
    Raises Problem (hot-overcommit) with the numbers.
    """
    if hot_bytes <= present_bytes:
        return {}
    # One promise at a time: two at once would both find the same room.
    list(Tenant.objects.select_for_update().order_by("pk").values_list("pk"))
    room = read_room(without=tenant_id)
    if room is None or hot_bytes <= room.left_bytes:
        return {}
    numbers = {
        "hot_bytes": hot_bytes,
        "left_bytes": room.left_bytes,
        "promised_bytes": room.promised_bytes,
        "capacity_bytes": room.capacity_bytes,
    }
    if overcommit:
        return {"overcommit": numbers}
    raise Problem(
        "hot-overcommit",
        f"hot_bytes: {_mib(hot_bytes)} are more than the {_mib(room.left_bytes)} that are left: "
        f"the hot tier has room for {_mib(room.capacity_bytes)} of blocks, of which other tenants "
        f"were promised {_mib(room.promised_bytes)}.",
        field="hot_bytes",
        **numbers,
    )


def fitting_bytes(wanted_bytes: int, *, share: float = 1.0) -> int:
    """At most `wanted_bytes`, and at most `share` of the room that is left, in whole MiB.

    Raises Problem (hot-overcommit) if that is less than LEAST_DEFAULT_BYTES.
    """
    room = read_room()
    if room is None:
        return wanted_bytes
    fitting = min(wanted_bytes, int(room.left_bytes * share) >> 20 << 20)
    if fitting < min(wanted_bytes, LEAST_DEFAULT_BYTES):
        require_room(wanted_bytes, tenant_id=None, present_bytes=0, overcommit=False)
    return fitting


def _mib(size_bytes: int) -> str:
    return f"{size_bytes >> 20:,} MiB"
