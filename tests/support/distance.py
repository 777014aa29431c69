r"""A proxy that stands for a long way: a round trip, a limit for each connection, rare stalls.

    python tests/support/distance.py TARGET ROUND_TRIP_S STREAM_BYTES_PER_S STALL_S STALL_BYTES \
                                     [LISTEN]

Forwards to TARGET, a port on loopback or HOST:PORT; listens on LISTEN (HOST:PORT, by default a free
port on loopback), prints its own port, then runs until it is ended. STREAM_BYTES_PER_S
limits the responses of each connection (0: no limit). About once in STALL_BYTES of all responses
(0: never), the connection that carries them pauses for STALL_S. A process of its own, so that it
takes no GIL from what is measured.
"""

import asyncio
import random
import subprocess
import sys
import time
from typing import Self

_PIECE = 256 << 10
# Bytes on their way in one connection and direction; more wait in the sender's socket.
_MOST_BYTES = 8 << 20


class Distance:
    """The proxy as a context manager: `port` leads to `target_port`."""

    def __init__(
        self,
        target_port: int,
        *,
        round_trip_s: float,
        stream_bytes_per_s: float = 0,
        stall_s: float = 0,
        stall_bytes: float = 0,
    ) -> None:
        numbers = (target_port, round_trip_s, stream_bytes_per_s, stall_s, stall_bytes)
        self._command = [sys.executable, __file__, *map(str, numbers)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class _Way:
    """One direction of a connection: bytes arrive `delay_s` after they were sent."""

    def __init__(self, delay_s: float, bytes_per_s: float, stalls: "_Stalls | None") -> None:
        self._delay_s, self._bytes_per_s, self._stalls = delay_s, bytes_per_s, stalls
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(
            maxsize=_MOST_BYTES // _PIECE
        )

    async def carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        sending = asyncio.ensure_future(self._send(sink))
        try:
            while piece := await source.read(_PIECE):
                await self._under_way.put((time.monotonic() + self._delay_s, piece))
        except OSError:
            pass
        await self._under_way.put((0.0, b""))
        await sending

    async def _send(self, sink: asyncio.StreamWriter) -> None:
        free_at = 0.0
        try:
            while True:
                due, piece = await self._under_way.get()
                if not piece:
                    break
                pause_s = self._stalls.take(len(piece)) if self._stalls is not None else 0.0
                at = max(due, free_at) + pause_s
                if self._bytes_per_s:
                    free_at = max(at, time.monotonic()) + len(piece) / self._bytes_per_s
                if (left_s := at - time.monotonic()) > 0:
                    await asyncio.sleep(left_s)
                sink.write(piece)
                await sink.drain()
        except OSError:
            while (await self._under_way.get())[1]:  # so that the reading side can end
                pass
        finally:
            sink.close()


class _Stalls:
    def __init__(self, stall_s: float, every_bytes: float) -> None:
        self._stall_s, self._every_bytes = stall_s, every_bytes
        self._random = random.Random(7)

    def take(self, size_bytes: int) -> float:
        return self._stall_s if self._random.random() < size_bytes / self._every_bytes else 0.0


async def _main() -> None:
    target_host, _, target_port = sys.argv[1].rpartition(":")
    round_trip_s, bytes_per_s, stall_s, stall_bytes = map(float, sys.argv[2:6])
    host, _, port = (sys.argv[6:] or ["127.0.0.1:0"])[0].rpartition(":")
    stalls = _Stalls(stall_s, stall_bytes) if stall_bytes else None

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection(
                target_host or "127.0.0.1", int(target_port), limit=2 * _PIECE
            )
        except OSError:
            writer.close()
            return
        there = _Way(round_trip_s / 2, 0, None)
        back = _Way(round_trip_s / 2, bytes_per_s, stalls)
        await asyncio.gather(there.carry(reader, other_writer), back.carry(other_reader, writer))

    server = await asyncio.start_server(connect, host, int(port), limit=2 * _PIECE)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
