"""Hot quotas are promises of memory: their sum fits the servers unless an operator says otherwise.

A sum that does not fit lets one tenant's blocks take the room that another one was promised.
"""

from dataclasses import dataclass
from typing import Any

from valkey.exceptions import ValkeyError

from base import log_events
from base.problems import Problem
from storage import hot
from storage.hot_servers import memory
from tenants.models import Tenant

LEAST_DEFAULT_BYTES = 16 << 20  # below that a tenant is not worth making without being asked


@dataclass(frozen=True)
class Room:
    """`capacity_bytes`: of blocks that fit. `promised_bytes`: to the active tenants but one."""

    capacity_bytes: int
    promised_bytes: int

    @property
    def left_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.promised_bytes)


def read_room(*, without: int | None = None) -> Room | None:
    """`without` one tenant's quota. None: there is no limit, or no server that would tell it."""
    try:
        capacity = hot.capacity_bytes()
    except ValkeyError as error:  # a Valkey that is down does not stop what people decide
        log_events.HOT_ROOM_UNKNOWN.log(error=error)
        return None
    return None if capacity is None else Room(capacity, promised_bytes(without=without))


def promised_bytes(*, without: int | None = None) -> int:
    """The sum of active tenants' hot quotas, perhaps `without` one of them."""
    rows = Tenant.objects.filter(is_active=True)
    if without is not None:
        rows = rows.exclude(pk=without)
    # Here, not in the database, whose sum of integers may overflow and then raises.
    return sum(quota or 0 for quota in rows.values_list("quota__hot_bytes", flat=True))


def scarce_room_bytes() -> int | None:
    """How many bytes of blocks still fit, where quotas promise more than there is; None elsewhere.

    Raises valkey's errors.
    """
    used = memory()
    if not used.max_bytes or promised_bytes() * hot.MEMORY_PER_BYTE <= used.max_bytes:
        return None
    return int(max(0, used.max_bytes - used.used_bytes) / hot.MEMORY_PER_BYTE)


def require_room(
    hot_bytes: int, *, tenant_id: int | None, held_bytes: int, overcommit: bool
) -> dict[str, Any]:
    """Whether a tenant may be promised `hot_bytes`, where `held_bytes` were promised until now.

    Inside a transaction. Returns what the audit shall say of an overcommitment, if it is one.
    Raises Problem (hot-overcommit) with the numbers.
    """
    if hot_bytes <= held_bytes:
        return {}
    # One promise at a time, or two would both find the same room.
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

    Raises Problem (hot-overcommit) when that is next to nothing.
    """
    room = read_room()
    if room is None:
        return wanted_bytes
    fitting = min(wanted_bytes, int(room.left_bytes * share) >> 20 << 20)
    if fitting < min(wanted_bytes, LEAST_DEFAULT_BYTES):
        require_room(wanted_bytes, tenant_id=None, held_bytes=0, overcommit=False)
    return fitting


def _mib(size_bytes: int) -> str:
    return f"{size_bytes >> 20:,} MiB"
