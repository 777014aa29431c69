"""A change of the audit in words: "Cold quota 16 GiB → 2 TiB"."""

from typing import Any

from dashboard.formats import UNKNOWN
from dashboard.pages.audit.selector import audit_row
from dashboard.pages.tenant.policy import BY_NAME, in_words
from neve.typed import size_typed, time_typed
from retention.undo import can_undo

_LABELS = {
    **{name: each.label for name, each in BY_NAME.items()},
    **{"hot_bytes": "Hot quota", "cold_bytes": "Cold quota", "node_limit": "Nodes"},
    **{"name": "Name", "is_active": "Active", "samples_enabled": "Samples", "role": "Role"},
    **{"space_limit": "Spaces", "context_limit": "Contexts"},
}
_EMPTY: tuple[Any, ...] = (None, "", {}, [])
_DONE = {
    "quota.set": "Quota saved",
    "retention.set": "Policy saved",
    "retention.rule.add": "Rule added",
    "retention.rule.change": "Rule changed",
    "retention.rule.remove": "Rule removed",
    "tenant.change": "Tenant changed",
    "tenant.create": "Tenant made",
    "tenant.samples": "Samples switched",
    "tenant.let_in": "Let in again",
    "membership.add": "Added",
    "membership.change": "Role changed",
    "membership.delete": "Removed",
}


def with_changes(event: Any) -> Any:
    """The event with `words` (what was done), `changes` (label, before, after) and `may_undo`."""
    event.changes = [
        (_LABELS.get(name, name), _value(name, before), _value(name, after))
        for name, before, after in audit_row(event).changes
        if not (before in _EMPTY and after in _EMPTY)
    ]
    event.may_undo = can_undo(event)
    event.words = _DONE.get(event.action, event.action)
    return event


def _value(name: str, value: Any) -> str:
    if name in BY_NAME and (value is not None or name.endswith(("_s", "_bytes"))):
        try:
            return in_words(BY_NAME[name], value)
        except (TypeError, ValueError):  # of an older release
            return str(value)
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("_bytes"):
        return size_typed(value)
    if isinstance(value, int) and name.endswith("_s"):
        return time_typed(value)
    if isinstance(value, dict):
        return ", ".join(
            f"{_LABELS.get(key, key)} {_value(key, each)}" for key, each in value.items()
        )
    return str(value)
