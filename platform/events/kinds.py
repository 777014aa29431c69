"""The kinds of events, each declared once: for `emit`, for filters, and for docs/webhooks.md."""

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class EventKind:
    """`subject`: type of the object that it happened to. `data`: member → meaning."""

    name: str
    subject: str
    about: str
    data: dict[str, str]


_BLOCKS = {"blocks": "its blocks", "tokens": "its tokens"}
_INCIDENT = {
    "kind": "of the rule, such as hit_rate",
    "since": "when it began",
    "cause": "main reason of the misses; empty: none is known",
    "lever": "name of the setting that helps; empty: none",
    "lever_now": "its present value",
    "lost_tokens": "prompt tokens that would have been hits, about",
}

KINDS = {
    kind.name: kind
    for kind in (
        EventKind(
            "context.stored",
            "context",
            "All blocks of a context are stored, for the first time or again.",
            {"space": "name of its space", **_BLOCKS},
        ),
        EventKind(
            "context.pinned",
            "context",
            "Somebody pinned a context, or changed their pin.",
            {
                "until": "end of the pin",
                "owner": "who pinned",
                "reason": "as given",
                "tier": "any, hot or durable",
            },
        ),
        EventKind(
            "context.unpinned",
            "context",
            "Somebody ended a pin. A pin that runs out sends no event.",
            {"owner": "whose pin it was"},
        ),
        EventKind(
            "context.expiring_soon",
            "context",
            "A pin, an extension or a scheduled expiry ends soon. Sent once for each end.",
            {"at": "when it ends", "ends": "pin, extension or expiry"},
        ),
        EventKind(
            "context.expired",
            "context",
            "Somebody expired a context, or its scheduled expiry came.",
            {"removed_blocks": "blocks that were removed", "removed_bytes": "their bytes"},
        ),
        EventKind(
            "context.lost",
            "context",
            "Blocks of a stored context are in neither tier any more.",
            {"lost_blocks": "blocks that are gone", "state": "partial or lost"},
        ),
        EventKind("context.deleted", "context", "Somebody deleted a context.", {}),
        EventKind(
            "quota.threshold",
            "tenant",
            "A tier passed 80, 90 or 100 % of its quota, or fell 5 points below such a threshold.",
            {
                "tier": "hot or cold",
                "percent": "the threshold now passed; 0: below all",
                "was_percent": "the threshold passed before",
                "used_bytes": "bytes in use",
                "quota_bytes": "the quota",
            },
        ),
        EventKind(
            "node.up",
            "node",
            "A node has a live session, after it had none.",
            {"space": "name of the space of its session"},
        ),
        EventKind(
            "node.down",
            "node",
            "A node has no live session any more.",
            {"reason": "ended (by the node), cut (by the platform or a person) or silent"},
        ),
        EventKind(
            "job.done",
            "job",
            "A requested job did its work.",
            {"kind": "of the job", "requested_by": "who requested it"},
        ),
        EventKind(
            "job.failed",
            "job",
            "A requested job failed, and is not tried again.",
            {"kind": "of the job", "requested_by": "who requested it", "attempts": "how many"},
        ),
        EventKind(
            "policy.changed",
            "policy",
            "A retention policy, one of its rules or the tenant's quota changed.",
            {"what": "policy, rule or quota", "changed": "names of the changed settings"},
        ),
        EventKind(
            "incident.opened",
            "incident",
            "A rule held for long enough: something needs a person.",
            _INCIDENT,
        ),
        EventKind(
            "incident.acknowledged",
            "incident",
            "Somebody looks after an incident.",
            {**_INCIDENT, "by": "who acknowledged it"},
        ),
        EventKind("incident.ended", "incident", "An incident is over.", _INCIDENT),
        EventKind("webhook.test", "webhook", "Somebody pressed a webhook's test button.", {}),
    )
}


def matches(kind: str, patterns: list[str]) -> bool:
    """Whether a kind is among `patterns` (`context.*`). An empty list means every kind."""
    return not patterns or any(fnmatchcase(kind, pattern) for pattern in patterns)
