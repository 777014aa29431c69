"""What the groups of operations share."""

from neve.api._sync.transport import Transport


class Resource:
    """Operations on one kind of object."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
