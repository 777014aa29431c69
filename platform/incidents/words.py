"""Incidents in words: for events, mail, REST and pages. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from incidents.kinds import KINDS
from neve.node.stats import LOAD_MS
from neve.planner.causes import CAUSES
from neve.planner.changes import span_words


def title(kind: str, value: float | None, before: float | None, facts: Mapping[str, Any]) -> str:
    """Such as "hit rate −43 points" or "breaker open on 6 nodes"."""
    if value is None:
        return KINDS[kind].label
    number = f"{value:.0f}"
    if kind == "hit_rate":
        fall = 100 * ((before or 0) - value)
        return f"hit rate −{fall:.0f} points"
    return {
        "refused": f"{value:.3g} % of new blocks refused",
        "dropped": f"{value:.3g} % of new blocks dropped",
        "load_p99": f"loads take {'over ' * (value >= LOAD_MS[-1])}{number} ms (p99)",
        "dirty_age": f"no flush for {span_words(value)}",
        "breaker": f"breaker open on {_nodes(value)}",
        "silent_node": f"{_nodes(value)} silent",
        "job_failures": f"{number} jobs failed",
        "store_away": f"S3 {_stores(facts)} away",
        "clock_skew": f"{number} blocks missed: clocks differ",
        "memory_promise": f"hot memory {number} % used, {facts.get('promised', 0):.2g} × promised",
    }.get(kind, KINDS[kind].label)


def reason(kind: str, cause: str, facts: Mapping[str, Any]) -> str:
    """The main cause as a sentence; "" if none is known."""
    if cause == "unflushed":
        lost = facts.get("lost_blocks") or 0
        more = f": {lost:,} blocks lost as they left hot" if lost else ""
        return f"Its cold quota is full, so flushes are refused{more}."
    if cause == "silent":
        what, remedy = CAUSES[cause].what, CAUSES[cause].remedy
        return f"{what[0].upper()}{what[1:]}: {remedy}."
    if kind == "store_away" and (stores := facts.get("stores")):
        errors = "; ".join(f"{each['name']}: {each['error']}" for each in stores)
        return f"What only {_stores(facts)} holds is missed, and moves wait. {errors}"
    if cause in CAUSES:
        what = CAUSES[cause].what
        return f"{what[0].upper()}{what[1:]}."
    return {
        "dirty_age": "Do the flusher and beat run? Jobs have the last error.",
        "job_failures": ", ".join(f"{n} {k}" for k, n in (facts.get("kinds") or {}).items()) + ".",
        "dropped": "Nodes could not store these blocks in time.",
        "memory_promise": "Quotas promise more than there is: the next blocks are refused.",
    }.get(kind, "")


def line(words: str, tenant: str, since: datetime) -> str:
    """One line for a subject: who, what, since when."""
    return f"{tenant or 'platform'}: {words} since {since:%H:%M} UTC"


def _stores(facts: Mapping[str, Any]) -> str:
    names = [each["name"] for each in facts.get("stores") or ()]
    return f"store{'' if len(names) == 1 else 's'} {', '.join(names)}"


def _nodes(count: float) -> str:
    return f"{count:.0f} node{'' if count == 1 else 's'}"
