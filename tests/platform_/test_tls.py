"""TLS of both Valkeys: every client of the control plane checks who answers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.certificates import issue, make_ca
from support.servers import PYTHON_ENV, ROOT, ValkeyServer, free_port

pytestmark = pytest.mark.integration

CLIENTS = """
import asyncio, json, logging
from channels.layers import get_channel_layer
from django.core.cache import cache
from storage import hot
from controlplane.celery import app
logging.disable()
async def channels():
    await get_channel_layer().send("here", {"type": "test"})
def said(do):
    try:
        do()
        return "connected"
    except Exception as error:
        return str(error)
print(json.dumps({
    "cache": said(lambda: cache.set("key", 1)),
    "channels": said(lambda: asyncio.run(channels())),
    "celery": said(lambda: app.connection().ensure_connection(max_retries=1, interval_start=0)),
    "hot": said(lambda: hot.admin().ping()),
}))
"""


class TlsServer(ValkeyServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tls_port = free_port()

    def command(self) -> list[str]:
        files = [f"--tls-{kind}-file" for kind in ("cert", "key", "ca-cert")]
        paths = [str(self.folder / name) for name in ("server.crt", "server.key", "ca.crt")]
        options = [word for pair in zip(files, paths, strict=True) for word in pair]
        options += ["--tls-auth-clients", "no", "--tls-port", str(self.tls_port)]
        return [*super().command(), *options]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    folder = tmp_path_factory.mktemp("tls")
    make_ca(folder, "ca")
    issue(folder, "ca", "server", "IP:127.0.0.1")
    with TlsServer(folder) as server:
        yield server


def outcomes(server: TlsServer, host: str, ca: str) -> dict[str, str]:
    url = f"valkeys://{host}:{server.tls_port}/0"
    env = {"NEVE_BUS_URL": url, "NEVE_HOT_URL": url, "SSL_CERT_FILE": ca}
    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-v0", "-c", CLIENTS],
        cwd=ROOT, env={**os.environ, **PYTHON_ENV, **env}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_certificate_of_a_known_authority_is_accepted(server):
    found = outcomes(server, "127.0.0.1", str(server.folder / "ca.crt"))
    assert set(found.values()) == {"connected"}, found


@pytest.mark.parametrize(("host", "ca"), [("localhost", "ca.crt"), ("127.0.0.1", "none.crt")])
def test_another_name_or_an_unknown_authority_is_refused(server, host, ca):
    found = outcomes(server, host, str(server.folder / ca))
    assert all("certificate verify failed" in said for said in found.values()), found
