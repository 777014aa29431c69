"""Usage and quotas of a session's tenant, read from the hot tier."""

import time

from neve.datapath.transport import Transport
from neve.index.tier import HotTier, Usage
from neve.node.session import Session

TIMEOUT_S = 5.0


def read_usage(session: Session) -> Usage:
    """Makes a connection of its own. Raises `ReplyError`, `Unavailable` or `DeadlineExceeded`."""
    transport = Transport(session.valkey)

    def execute(*args: bytes | str | int | float) -> object:
        return transport.execute(*args, deadline=time.monotonic() + TIMEOUT_S)

    try:
        return HotTier(execute, session.tenant_id, session.buckets).usage()
    finally:
        transport.close()
