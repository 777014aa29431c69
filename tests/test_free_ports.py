"""Ports of test servers: chosen long before a server binds them, so nobody may get them again."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.servers import ValkeyServer, free_port


def test_no_port_is_given_twice() -> None:
    given = [free_port(9) for _ in range(100)]
    ports = {port for first in given for port in range(first, first + 9)}
    assert len(ports) == 900


@pytest.mark.integration
def test_no_other_process_gets_a_held_port_and_a_server_still_does(tmp_path: Path) -> None:
    port = free_port(hold=True)
    bind = f"import socket; socket.socket().bind(('127.0.0.1', {port}))"
    other = subprocess.run([sys.executable, "-c", bind], capture_output=True, text=True)
    assert "Address already in use" in other.stderr
    with ValkeyServer(tmp_path, port=port) as server, server.client() as client:
        assert client.ping()
