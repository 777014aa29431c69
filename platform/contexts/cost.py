"""What loading a prompt's stored beginning would cost against computing it.

The speeds are those that engines of the space measured and sent with their heartbeats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from catalog.models import Space
from catalog.sessions import live_sessions
from contexts.residency import BlockPlace, Residency
from neve.node.stats import SPEEDS
from neve.planner.breakeven import Prefill, Store
from neve.planner.choice import MARGIN
from tenants.scope import tenant_scope

MOST_NODES = 64  # the medians of so many tell enough


@dataclass(frozen=True)
class Cost:
    """Seconds to load the usable tokens, and to compute them instead. None: not measured.

    `verdict`: load or compute, None without both. `nodes`: how many measured.
    """

    load_s: float | None = None
    compute_s: float | None = None
    verdict: str | None = None
    basis: str = "unknown"
    nodes: int = 0


def cost_of(space: Space, found: Residency, *, tokens: int) -> Cost:
    """`tokens`: of the chain's whole chunks. One SQL statement, none if nothing is usable."""
    if not found.usable_tokens:
        return Cost()
    with tenant_scope(space.tenant_id):
        rows = live_sessions().filter(space=space).exclude(speeds={})
        each = list(rows.values_list("speeds", flat=True)[:MOST_NODES])
    if not each:
        return Cost()
    speeds = {
        name: median(known)
        for name in SPEEDS
        if (known := [node[name] for node in each if name in node])
    }
    usable = len(found.blocks) * found.usable_tokens // tokens
    load_s = _load_s(speeds, [each for each in found.blocks[:usable] if each.is_needed])
    compute_s = _compute_s(speeds, found.usable_tokens)
    verdict = None
    if load_s is not None and compute_s is not None:
        verdict = "load" if load_s <= compute_s * (1.0 - MARGIN) else "compute"
    return Cost(load_s, compute_s, verdict, "measured by the space's nodes", len(each))


def _compute_s(speeds: dict[str, float], tokens: int) -> float | None:
    if "prefill_s_per_token" not in speeds:
        return None
    prefill = Prefill(speeds["prefill_s_per_token"], speeds.get("prefill_s_per_pair", 0.0))
    return prefill.seconds(0, tokens)


def _load_s(speeds: dict[str, float], blocks: Sequence[BlockPlace]) -> float | None:
    """Tiers are read side by side."""
    sizes = {"hot": 0, "cold": 0}
    for block in blocks:
        if block.tier is not None:
            sizes[block.tier] += block.size_bytes
    seconds = [0.0]
    for tier, size_bytes in sizes.items():
        if size_bytes and not speeds.get(f"{tier}_bytes_per_s"):
            return None
        if size_bytes:
            round_trip_s = speeds.get(f"{tier}_round_trip_s", 0.0)
            store = Store(speeds[f"{tier}_bytes_per_s"], round_trip_s)
            seconds.append(store.seconds(size_bytes))
    return max(seconds)
