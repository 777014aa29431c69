"""Makes an empty Valkey allocate its `maxmemory` before the first store.

A store into memory that the process never touched waits for the kernel to find and clear pages,
and on a virtual machine for the host to find them as well: there it ran at 0.1 to 0.7 GB/s instead
of 4. docs/decisions/003-first-touch.md has the numbers. It lasts only if the allocator keeps freed
memory, as deploy/valkey-hot tells it to. For the administrator; nodes may not do this.
"""

import time
from typing import Final

from neve.index.library import AdminClient

PIECE_BYTES: Final = 32 << 20  # one command touches so much: 3 ms, or 0.3 s where a host must help
# The server grows a string by 1 MiB more than asked (SDS_MAX_PREALLOC), and keeps its own notes.
_SLACK_BYTES: Final = (1 << 20) + 64
LEAVE_FREE: Final = 0.05  # of maxmemory: for the index, and for whoever stores meanwhile
LIFETIME_MS: Final = 60_000  # of a piece, should this process die before it frees it
FREEING_S: Final = 30.0


def touch_memory(client: AdminClient) -> int:
    """Returns how many bytes it touched: 0 unless the server is empty and has a `maxmemory`.

    The server answers others between two pieces. Raises what the client raises.
    """
    memory = client.execute_command("INFO", "memory")
    pieces = int(int(memory["maxmemory"]) * (1 - LEAVE_FREE)) - int(memory["used_memory"])
    pieces //= PIECE_BYTES
    if pieces < 1 or client.execute_command("DBSIZE"):
        return 0
    keys = [b"neve:touch:%d" % number for number in range(pieces)]
    try:
        for key in keys:
            client.execute_command("SET", key, b"", "PX", LIFETIME_MS)
            # The server fills with zeros up to there: no bytes travel.
            client.execute_command("SETRANGE", key, PIECE_BYTES - _SLACK_BYTES, b"x")
    finally:
        for key in keys:
            client.execute_command("UNLINK", key)
    _wait_until_freed(client)
    return pieces * PIECE_BYTES


def _wait_until_freed(client: AdminClient) -> None:
    """UNLINK frees in the background; until then the memory counts as used."""
    deadline = time.monotonic() + FREEING_S
    while time.monotonic() < deadline:
        if not client.execute_command("INFO", "memory")["lazyfree_pending_objects"]:
            return
        time.sleep(0.01)
