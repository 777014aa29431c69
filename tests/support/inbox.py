"""A real SMTP server that keeps the mails it gets."""

import asyncio
import email
import email.policy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any

from aiosmtpd.smtp import SMTP

from support.servers import free_port


class Inbox:
    """`mails`: those that came, as (address, message). `refused`: address → answer instead."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, Message]] = []
        self.refused: dict[str, str] = {}
        self.port = free_port()

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails += [(address, message) for address in envelope.rcpt_tos]
        return "250 OK"


@contextmanager
def listening() -> Iterator[Inbox]:
    """On a free port of this machine."""
    inbox, loop = Inbox(), asyncio.new_event_loop()
    serving = loop.create_server(lambda: SMTP(inbox, loop=loop), "127.0.0.1", inbox.port)
    server = loop.run_until_complete(serving)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield inbox
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
