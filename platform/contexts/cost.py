"""What loading a prompt's stored beginning would cost against computing it.

The speeds are those that engines of the space measured and sent with their heartbeats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from catalog.models import Space
from catalog.sessions import live_sessions
from contexts.residency import BlockPlace, Residency
from neve.index.tier import Tier
from neve.planner.breakeven import MARGIN
from neve.planner.speeds import Speeds, medians
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
    speeds = medians(each)
    usable = len(found.blocks) * found.usable_tokens // tokens
    load_s = _load_s(speeds, [each for each in found.blocks[:usable] if each.is_needed])
    compute_s = speeds.prefill.seconds(0, found.usable_tokens) if speeds.prefill else None
    verdict = None
    if load_s is not None and compute_s is not None:
        verdict = "load" if load_s <= compute_s * (1.0 - MARGIN) else "compute"
    return Cost(load_s, compute_s, verdict, "measured by the space's nodes", speeds.nodes)


def _load_s(speeds: Speeds, blocks: Sequence[BlockPlace]) -> float | None:
    """Tiers are read side by side."""
    sizes = dict.fromkeys(Tier, 0)
    for block in blocks:
        if block.tier is not None:
            sizes[Tier(block.tier)] += block.size_bytes
    sizes = {tier: size_bytes for tier, size_bytes in sizes.items() if size_bytes}
    if sizes.keys() - speeds.stores.keys():
        return None
    return max(
        (speeds.stores[tier].seconds(size_bytes) for tier, size_bytes in sizes.items()), default=0.0
    )
