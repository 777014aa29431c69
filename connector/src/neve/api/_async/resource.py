"""What the groups of operations share."""

from neve.api._async.transport import AsyncTransport


class AsyncResource:
    """Operations on one kind of object."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
