"""The object store of one machine: nobody without credentials gets at a segment, by any port."""

import os
import re
import shlex
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deploy.installation import ROOT
from support.certificates import make_ca
from support.servers import S3Server

pytestmark = pytest.mark.integration

BODY = os.urandom(9 << 20)  # three of SeaweedFS's chunks
KEY = "t1/00/segment"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    (0, 0, 0, 4, 0, 0, 0, 0, 0)
)  # an empty SETTINGS


class ComposeS3(S3Server):
    """The command of docker-compose.yml's service `s3`, on other ports and in another folder."""

    def command(self) -> list[str]:
        self.folder.joinpath("data").mkdir(exist_ok=True)
        service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["s3"]
        subprocess.run([ROOT / "deploy/weed-keys", self.keys], check=True)
        options = shlex.split(service["command"])
        options = [f"-dir={self.folder}/data" if o == "-dir=/data" else o for o in options]
        for nth, part in enumerate(("s3", "master", "volume", "filer")):
            port = self.port + 2 * nth
            options = [o for o in options if not o.startswith(f"-{part}.port=")]
            options += [f"-{part}.port={port}", f"-{part}.port.grpc={port + 1}"]
        assert service["working_dir"] == "/keys"  # where security.toml is
        weed = ROOT / ".venv/bin/weed"
        return ["env", f"--chdir={self.keys}", str(weed), "-logtostderr=true", *options]

    def environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        return super().environment() | keys

    @property
    def keys(self) -> Path:
        return self.folder / "keys"


@pytest.fixture(params=["make up", "compose"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "make up":
        with S3Server(tmp_path) as up:
            yield up
    else:
        with ComposeS3(tmp_path) as up:
            yield up


def http(method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, ValueError):
        return 0, b""


def speaks_grpc(port: int, folder: Path | None) -> bool:
    """Whether an HTTP/2 server answers us: in the clear, or by TLS with the certificate there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as raw:
            link: socket.socket = raw
            if folder is not None:
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
                tls.set_alpn_protocols(["h2"])
                if (folder / "weed.crt").exists():
                    tls.load_cert_chain(folder / "weed.crt", folder / "weed.key")
                link = tls.wrap_socket(raw)
            with link:
                link.sendall(PREFACE)
                return link.recv(9)[3:4] == b"\4"  # its SETTINGS
    except OSError:
        return False


def listening(server: S3Server) -> tuple[list[tuple[str, int]], list[Path]]:
    """Its TCP addresses and its UNIX sockets."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    tcp = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    unix = {Path(c.laddr) for c in process.net_connections("unix") if c.laddr}
    return [(a.ip, a.port) for a in tcp], sorted(unix)


def test_no_port_gives_a_segment_to_whoever_has_no_credentials(
    server: S3Server, tmp_path: Path
) -> None:
    owner, bucket = server.client(), server.bucket()
    owner.put_object(Bucket=bucket, Key=KEY, Body=BODY)
    told = server.shell(f"fs.meta.cat /buckets/{bucket}/{KEY}")
    chunks = re.findall(r'"fileId":\s*"(\d+,\w+)"', told)
    assert chunks, told
    addresses, sockets = listening(server)
    ports = {port for _, port in addresses}
    assert ports == {server.port + n for n in range(8)}
    if isinstance(server, ComposeS3):  # the container's network sees what is not on loopback
        beyond = {port for ip, port in addresses if not ip.startswith("127.")}
        assert beyond == {server.port, server.port + 1}
    for path in sockets:
        assert path.stat().st_mode & 0o022 == 0, f"others may connect to {path}"

    strangers = [tmp_path / "stranger-bare", tmp_path / "stranger-made"]
    for folder in strangers:
        folder.mkdir()
    make_ca(strangers[1], "weed")
    leaks = []
    paths = [
        *(f"/buckets/{bucket}/{KEY}", f"/buckets/{bucket}/?limit=9", f"/{bucket}/{KEY}"),
        *(f"/{bucket}?list-type=2", *(f"/{chunk}" for chunk in chunks)),
        *(f"/dir/assign?collection={bucket}", f"/dir/lookup?fileId={chunks[0]}&read=yes"),
        *("/dir/status", "/vol/status", f"/collection/info?collection={bucket}"),
    ]
    destroy = [
        *(("DELETE", path) for path in paths[:3]),
        *(("DELETE", f"/{chunk}") for chunk in chunks),
        *(("POST", f"/buckets/{bucket}/moved?mv.from=/buckets/{bucket}/{KEY}"),),
        *(("PUT", f"/buckets/{bucket}/{KEY}"), ("PUT", f"/{bucket}/{KEY}")),
        *(("POST", "/submit"), ("GET", "/vol/vacuum?garbageThreshold=0.0001")),
        *(("GET", f"/col/delete?collection={bucket}"), ("POST", f"/{chunks[0]}")),
    ]
    for port in sorted(ports):
        for method, path in [*(("GET", path) for path in paths), *destroy]:
            status, answer = http(method, port, path, b"mine" if method != "GET" else None)
            if 200 <= status < 400:
                leaks.append((port - server.port, method, path, status, answer[:60]))
        as_whom = [folder for folder in (None, *strangers) if speaks_grpc(port, folder)]
        leaks += [(port - server.port, "grpc", folder) for folder in as_whom]
    assert not leaks
    # What the test calls gRPC is: with the right certificate each inner port speaks it.
    assert sum(speaks_grpc(port, server.keys) for port in ports) == 4
    for folder in strangers:
        with pytest.raises(subprocess.TimeoutExpired):  # it finds no master, for ever
            server.shell("lock", f"fs.rm -r /buckets/{bucket}", keys=folder, timeout_s=3)

    assert owner.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    listed = owner.list_objects_v2(Bucket=bucket)["Contents"]
    assert [item["Key"] for item in listed] == [KEY]
    url = owner.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": KEY})
    assert urllib.request.urlopen(url, timeout=5).read() == BODY


def test_the_keys_of_the_inner_ports_are_made_once_and_only_the_owner_reads_them(
    tmp_path: Path,
) -> None:
    first = []
    for _ in range(2):
        subprocess.run([ROOT / "deploy/weed-keys", tmp_path], check=True)
        first.append((tmp_path / "security.toml").read_text())
        for name in ("security.toml", "weed.key"):
            assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert first[0] == first[1]
