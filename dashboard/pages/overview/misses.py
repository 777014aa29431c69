"""Why blocks were missed: shares, and their change against the window before. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from neve.planner.causes import cause_of


@dataclass(frozen=True)
class MissShare:
    """`share`: of all missed blocks. `of_largest`: for the bar. `change`: of the share against the
    window before, None without misses there. `group`: its colour."""

    reason: str
    label: str
    hint: str
    blocks: int
    share: float
    of_largest: float
    change: float | None = None
    group: str = "broken"
    is_ordinary: bool = False


def miss_shares(
    misses: Mapping[str, int],
    before: Mapping[str, int] | None = None,
    *,
    never_flushes: bool = False,
) -> list[MissShare]:
    """Reasons that happened, the most frequent first. `never_flushes`: policy of the tenant."""
    counted = {reason: blocks for reason, blocks in misses.items() if blocks > 0}
    total, largest = sum(counted.values()), max(counted.values(), default=0)
    was = {reason: blocks for reason, blocks in (before or {}).items() if blocks > 0}
    was_total = sum(was.values())
    shares = []
    for reason, blocks in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        cause = cause_of(reason, never_flushes=never_flushes)
        share = blocks / total
        change = share - was.get(reason, 0) / was_total if was_total else None
        shares.append(
            MissShare(
                reason,
                cause.label if cause else reason.replace("_", " "),
                f"{cause.what}: {cause.remedy}" if cause else "",
                blocks,
                share,
                blocks / largest,
                change,
                cause.group if cause else "broken",
                is_ordinary=bool(cause and cause.is_ordinary),
            )
        )
    return shares
