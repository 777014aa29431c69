"""Server-sent events: lines of text to events.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        id: for `stream(after=…)`.
        type: such as "context.pinned".
        at: when; None where the platform does not say.
        tenant: slug, or None for events of the platform.
        subject: the object, {"type", "id", "name"}.
        data: facts of this type of event.
        raw: the envelope as it came.
    """

    id: str
    type: str
    at: datetime | None
    tenant: str | None
    subject: Mapping[str, Any]
    data: Mapping[str, Any]
    raw: Mapping[str, Any]


class EventLines:
    """Collects the lines of a stream."""

    def __init__(self) -> None:
        self._id = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """Takes one line without its end. Returns the event that an empty line completes."""
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._type = value
            elif name == "id" and "\0" not in value:
                self._id = value
            return None
        data, self._data = self._data, []
        type_, self._type = self._type, ""
        return _event(self._id, type_, "\n".join(data)) if data else None


def _event(id_: str, type_: str, text: str) -> Event | None:
    try:
        raw = json.loads(text)
    except ValueError:
        return None
    if not isinstance(raw, dict):
        return None
    at = raw.get("at")
    return Event(
        id=id_ or str(raw.get("id", "")),
        type=type_ or str(raw.get("type", "")),
        at=datetime.fromisoformat(at) if isinstance(at, str) else None,
        tenant=raw.get("tenant"),
        subject=raw.get("subject") or {},
        data=raw.get("data") or {},
        raw=raw,
    )
