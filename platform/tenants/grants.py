"""What the groups of an identity provider give: the entries of NEVE_OIDC_ROLES. Imports no Django:
the settings read it."""

import re
from dataclasses import dataclass

OPERATOR = "operator"
_ENTRY = re.compile(
    r"(?P<group>[^=,]+)=(?:operator|(?P<tenant>[a-z][a-z0-9-]*):(?P<role>viewer|team))"
)


@dataclass(frozen=True)
class Grant:
    """`tenant` None: operator, of all tenants."""

    group: str
    tenant: str | None
    role: str


def grants(text: str) -> tuple[Grant, ...]:
    """Of `group=tenant:role,group=operator`. Raises ValueError naming the entry."""
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(
                f"{entry!r}: write group=operator, group=tenant:viewer or group=tenant:team"
            )
        found.append(Grant(match["group"].strip(), match["tenant"], match["role"] or OPERATOR))
    return tuple(found)
