"""Stores and loads a few blocks with an installed `neve` and its own Valkey: python try_wheel.py

Needs only the wheel and valkey-server, so it also runs in Pythons without test tools.
"""

import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import neve.vllm  # noqa: F401 -- must import without vllm
from neve import _core
from neve.datapath.status import Status
from neve.datapath.transport import Transport, make_keyspace
from neve.formats.keys import BucketKeys
from neve.index.library import functions_source
from neve.node.address import ValkeyAddress

BLOCKS = 20
PAYLOAD_BYTES = 1 << 20


def move_blocks(transport: Transport) -> None:
    deadline = time.monotonic() + 60
    transport.execute("FUNCTION", "LOAD", functions_source(), deadline=deadline)
    transport.execute(
        "HSET", BucketKeys(7, 0).quota, "hot_bytes", BLOCKS * 2 * PAYLOAD_BYTES, deadline=deadline
    )
    keys = make_keyspace(7, 1, 1, bytes(32))
    ids = [os.urandom(16) for _ in range(BLOCKS)]
    sent = [os.urandom(PAYLOAD_BYTES) for _ in ids]
    back = [bytearray(PAYLOAD_BYTES) for _ in ids]
    put = transport.put(keys, ids, ids, [1] * BLOCKS, sent, deadline=deadline)
    put.wait(deadline)
    assert set(put.statuses()) == {Status.OK}, put.trouble
    get = transport.get(keys, ids, back, deadline=deadline)
    get.wait(deadline)
    assert set(get.statuses()) == {Status.OK}, get.trouble
    assert back == sent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        command = ["valkey-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 60
            while not path.exists() and time.monotonic() < until:
                time.sleep(0.05)
            transport = Transport(ValkeyAddress((f"unix:{path}",)))
            move_blocks(transport)
            transport.close()
        finally:
            server.kill()
            server.wait()
    module = Path(_core.__file__).name
    print(f"Python {platform.python_version()}: {BLOCKS} blocks there and back with {module}")


if __name__ == "__main__":
    main()
