"""The listening socket of another process answers by the congestion control that we choose."""

import socket
import subprocess
import sys

import pytest

from deploy.congestion import WANTED, avoid_bbr, pace, system_default

SERVER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    peer, _ = listener.accept()
    print(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).decode(), flush=True)
"""


def test_accepted_connections_of_a_child_use_what_was_chosen():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        chosen = avoid_bbr(child.pid)
        with socket.create_connection(("127.0.0.1", port)):
            used = child.stdout.readline().decode().strip("\n\0")
    assert used == chosen
    assert used.encode() in WANTED or used == system_default()


def test_a_process_that_is_gone_is_an_error():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    if system_default().encode() in WANTED:
        assert avoid_bbr(child.pid) == system_default()  # nothing to do, nobody asked
    else:
        with pytest.raises(OSError):
            avoid_bbr(child.pid)


def test_a_paced_server_sends_no_faster():
    code = (
        "import socket, sys\n"
        "with socket.create_server(('127.0.0.1', 0)) as listener:\n"
        "    print(listener.getsockname()[1], flush=True)\n"
        "    peer, _ = listener.accept()\n"
        "    rate = peer.getsockopt(socket.SOL_SOCKET, 47, 8)\n"
        "    print(int.from_bytes(rate, sys.byteorder), flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert pace(child.pid, 50_000_000) == 1
        with socket.create_connection(("127.0.0.1", port)):
            assert int(child.stdout.readline()) == 50_000_000
