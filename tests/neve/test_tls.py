"""TLS to a real Valkey: a CA made for the test, server names, client certificates."""

import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.datapath.status import Status
from neve.datapath.transport import Transport, make_keyspace
from neve.errors import Unavailable
from neve.index.tier import HotTier
from neve.node.address import TlsSettings, ValkeyAddress
from support.certificates import issue, make_ca
from support.chains import provision
from support.servers import ValkeyServer, free_port

pytestmark = pytest.mark.integration

KEYS = make_keyspace(7, 1, 12, bytes(32))
MIB = 1 << 20


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


class TlsServer(ValkeyServer):
    """Speaks TLS on `tls_port`, and asks clients for certificates."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        super().__init__(folder)
        self.tls_port = free_port()
        self.certificates = certificates

    def command(self) -> list[str]:
        return [
            *super().command(),
            *("--tls-port", str(self.tls_port)),
            *("--tls-cert-file", str(self.certificates / "server.crt")),
            *("--tls-key-file", str(self.certificates / "server.key")),
            *("--tls-ca-cert-file", str(self.certificates / "ca.crt")),
        ]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("certificates"))
    make_ca(folder, "ca")
    make_ca(folder, "stranger")
    issue(folder, "ca", "server", "DNS:valkey.test,IP:127.0.0.1")
    issue(folder, "ca", "node", "DNS:node.test")
    issue(folder, "stranger", "intruder", "DNS:node.test")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[TlsServer]:
    with TlsServer(Path(tmp_path_factory.mktemp("valkey")), certificates) as server:
        provision(server)
        yield server


def settings(certificates: Path, **others: str | None) -> TlsSettings:
    fields: dict[str, str | None] = {
        "ca_file": str(certificates / "ca.crt"),
        "certificate_file": str(certificates / "node.crt"),
        "key_file": str(certificates / "node.key"),
    }
    return TlsSettings(**(fields | others))


def connect(server: TlsServer, tls: TlsSettings, host: str = "127.0.0.1") -> Transport:
    return Transport(ValkeyAddress((f"{host}:{server.tls_port}",), tls))


def test_blocks_pass_byte_for_byte(server, certificates):
    transport = connect(server, settings(certificates))
    ids = [os.urandom(16) for _ in range(12)]
    sent = [os.urandom(2 * MIB + 17) for _ in ids]
    stored = transport.put(KEYS, ids, [bytes(16)] * 12, [1] * 12, sent, deadline=soon(30))
    assert stored.wait(soon(30))
    assert set(stored.statuses()) == {Status.OK}
    back = [bytearray(2 * MIB + 17) for _ in ids]
    loaded = transport.get(KEYS, ids, back, deadline=soon(30))
    assert loaded.wait(soon(30))
    assert set(loaded.statuses()) == {Status.OK}
    assert [bytes(buffer) for buffer in back] == sent
    assert HotTier(
        lambda *args: transport.execute(*args, deadline=soon()), 7, 1
    ).usage().hot_blocks >= 12  # fmt: skip
    transport.close()


def test_a_server_name_is_sent_and_verified(server, certificates):
    good = connect(server, settings(certificates, server_name="valkey.test"), "localhost")
    assert good.execute("PING", deadline=soon()) == b"PONG"
    good.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"server_name": "other.test"}, "hostname mismatch"),
        ({"server_name": "127.0.0.2"}, "IP address mismatch"),
        ({"ca_file": "stranger.crt"}, "verify failed|unable to get|self.signed"),
        ({"ca_file": None}, "unable to get|self.signed"),
        ({"certificate_file": "intruder.crt", "key_file": "intruder.key"}, "."),
        ({"certificate_file": None, "key_file": None}, "."),
    ],
)
def test_whoever_is_not_who_they_should_be_gets_nothing(server, certificates, change, why):
    files = {
        name: str(certificates / value) if value and name.endswith("_file") else value
        for name, value in change.items()
    }
    transport = connect(server, settings(certificates, **files))
    with pytest.raises(Unavailable, match=why):
        transport.execute("PING", deadline=soon(5))
    transport.close()


def test_files_that_cannot_be_used_are_named_at_once(server, certificates):
    for name in ("ca_file", "certificate_file", "key_file"):
        with pytest.raises(ValueError, match="absent"):
            connect(server, settings(certificates, **{name: str(certificates / "absent")}))


def test_a_plain_server_and_a_silent_one_are_unavailable(server, certificates):
    transport = Transport(ValkeyAddress((f"127.0.0.1:{server.port}",), settings(certificates)))
    with pytest.raises(Unavailable):
        transport.execute("PING", deadline=soon(5))
    transport.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        seeds = (f"127.0.0.1:{silent.getsockname()[1]}",)
        transport = Transport(ValkeyAddress(seeds, settings(certificates)))
        started = time.monotonic()
        with pytest.raises(Unavailable):
            transport.execute("PING", deadline=soon(60))
        assert time.monotonic() - started < 30
        transport.close()


def test_old_tls_is_not_spoken(certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seeds = (f"127.0.0.1:{listener.getsockname()[1]}",)
        transport = Transport(ValkeyAddress(seeds, settings(certificates)))
        asking = transport.call("PING", deadline=soon(5))
        sock, _ = listener.accept()
        with sock, pytest.raises(ssl.SSLError):
            context.wrap_socket(sock, server_side=True)
        assert asking.wait(soon(5))
        assert Status(asking.statuses()[0]) is Status.UNAVAILABLE
        transport.close()
