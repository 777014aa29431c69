"""Audit events as the page shows them."""

from dataclasses import dataclass
from typing import Any

from tenants.models import AuditEvent


@dataclass(frozen=True)
class AuditRow:
    """`changes`: (member, before, after) of those that differ; None where there was none."""

    event: AuditEvent
    changes: list[tuple[str, Any, Any]]


def audit_row(event: AuditEvent) -> AuditRow:
    before, after = event.before or {}, event.after or {}
    names = dict.fromkeys([*before, *after])
    values = [(name, before.get(name), after.get(name)) for name in names]
    return AuditRow(event, [each for each in values if each[1] != each[2]])
