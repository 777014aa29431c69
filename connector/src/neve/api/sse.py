"""Server-sent events: lines of text to messages.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """`data` is JSON."""

    type: str
    data: Any


class EventLines:
    """Collects the lines of a stream. `last_id`: where a new stream would go on."""

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self._id = last_id
        self._type = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Message | None:
        """Takes one line without its end. Returns the message that an empty line completes."""
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
        self.last_id = self._id
        type_, text = self._type, "\n".join(self._data)
        self._type, self._data = "", []
        return Message(type_, json.loads(text)) if text else None
