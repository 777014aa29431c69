"""The worst slice of a fallen hit rate: the label, space or node that lost most of it."""

from datetime import datetime
from typing import Any, Final

from catalog.measures import MEASURES
from catalog.slices import Row, Span, Where, table
from incidents.kinds import HIT_RATE
from incidents.models import Incident

STEP_S: Final = 60
BEFORE_S: Final = 1800
LEAST_SHARE: Final = 0.5  # of the lost hits
LEAST_CONTRAST: Final = 0.05  # of its hit rate's fall, against that of the other parts


def worst_of(row: Incident, slug: str, now: datetime) -> dict[str, Any]:
    """Without members: not known yet. `split` "all": no part is worse than the others."""
    names = row.facts.get("nodes") or []
    if names:
        more = len(names) - 1 + row.facts.get("more_nodes", 0)
        return {"split": "node", "name": names[0], "more": more}
    if row.kind != HIT_RATE.name or row.tenant_id is None:
        return {}
    now_s = now.timestamp()
    end_ts = int(now_s // STEP_S + 1) * STEP_S
    start_ts = min(int(row.since.timestamp()) // STEP_S * STEP_S, end_ts - STEP_S)
    start_ts = max(start_ts, end_ts - BEFORE_S)
    span = Span(start_ts, end_ts, STEP_S)
    before = Span(start_ts - BEFORE_S, start_ts, STEP_S)
    where = Where({row.tenant_id: slug})
    best: tuple[float, dict[str, Any]] = (LEAST_CONTRAST, {})
    parts: dict[str, int] = {}
    for split in ("label", "space", "node"):
        found = table(where, MEASURES["hit_rate"], split, span, before, now_s=now_s)
        rows = [each for each in found.rows if each.change is not None and each.tokens]
        parts[split] = len(rows)
        worst, contrast = _worst(rows)
        if worst is not None and contrast >= best[0]:
            key = worst.key.space_number if split == "space" else worst.key.name
            shown = {"split": split, "key": key, "name": worst.name or worst.space}
            best = (contrast, shown | {"before": worst.before, "now": worst.value})
    if best[1] or not parts["node"]:
        return best[1]
    return {"split": "all", "nodes": parts["node"], "spaces": parts["space"]}


def _worst(rows: list[Row]) -> tuple[Row | None, float]:
    """The part with most lost hits, if it has most of all and fell more than the others."""
    lost = {id(row): -(row.change or 0) * row.tokens for row in rows}
    whole = sum(each for each in lost.values() if each > 0)
    worst = max((r for r in rows if not r.key.is_rest), key=lambda r: lost[id(r)], default=None)
    if worst is None or len(rows) < 2 or whole <= 0 or lost[id(worst)] < LEAST_SHARE * whole:
        return None, 0.0
    others = [row for row in rows if row is not worst]
    fall = sum(lost[id(row)] for row in others) / sum(row.tokens for row in others)
    return worst, -(worst.change or 0) - fall
